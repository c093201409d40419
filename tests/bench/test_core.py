"""CORE beside a peer: both sides are asked the same, and have to agree."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from nanochat.bench import core as bench
from nanochat.bench import peer_core
from nanochat.bench.core import CoreBench, bench_core
from nanochat.bench.peer import PeerFailed
from nanochat.common.errors import DataError, EvalError

STAND_IN = """
def build_model(checkpoint, step, device, phase):
    assert phase == "eval" and step == 220
    return "model", "tokenizer", {}

def evaluate_task(model, tokenizer, data, device, meta):
    return ACCURACY
"""


def stand_in_peer(folder: Path, accuracy: float) -> Path:
    """A checkout with as much of karpathy/nanochat as is asked for."""
    package = folder / "nanochat"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("checkpoint_manager", "core_eval"):
        (package / f"{name}.py").write_text(STAND_IN.replace("ACCURACY", str(accuracy)))
    return folder


@pytest.mark.req("SC-004")
def test_both_sides_are_timed_and_have_to_agree(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = shared_dir / "parity/core-eval/base", shared_dir / "data/eval"
    assert bench.main([str(base), str(data), "-", "4", "copa"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["tasks"] == 1 and alone["seconds"] > 0 and "ratio_of_seconds" not in alone
    assert alone["passes"] == 3
    asked: dict[str, Any] = {"base": base, "data_dir": data, "limit": 4, "labels": ("copa",)}
    right = 0.5  # of the first four verdicts of the reference on copa
    found = bench_core(CoreBench(peer=stand_in_peer(tmp_path / "a", right), **asked, num_passes=2))
    assert found["ratio_of_seconds"] > 0 and found["passes"] == 2
    with pytest.raises(DataError, match="has no base_checkpoints"):
        bench_core(CoreBench(base=tmp_path, data_dir=data, peer=None))
    with pytest.raises(EvalError, match="expected the same"):
        bench_core(CoreBench(peer=stand_in_peer(tmp_path / "b", 0.125), **asked))
    with pytest.raises(PeerFailed, match="the peer failed with code"):
        bench_core(CoreBench(peer=tmp_path / "nothing", **asked))


def test_the_peer_shuffles_and_cuts_as_its_own_script_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def evaluate_task(model: Any, tokenizer: Any, data: Any, device: Any, meta: Any) -> float:
        seen.append((data, meta))
        return 0.25

    manager, core_eval = types.ModuleType("m"), types.ModuleType("c")
    manager.build_model = lambda *_, **__: (None, None, None)  # type: ignore[attr-defined]
    core_eval.evaluate_task = evaluate_task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nanochat.checkpoint_manager", manager)
    monkeypatch.setitem(sys.modules, "nanochat.core_eval", core_eval)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{n}\n" for n in range(5)))
    task = {"label": "a", "path": str(path), "kind": "schema", "num_shots": 0, "delimiter": " "}
    setting = {"num_threads": 1, "checkpoint": "", "step": 1, "tasks": [task], "limit": 3}
    assert peer_core.main(setting)["accuracy"] == {"a": 0.25}
    [(rows, meta)] = seen
    assert len(rows) == 3 and meta["task_type"] == "schema"
