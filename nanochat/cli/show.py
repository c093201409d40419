"""nanochat show   in: a model   out: its config, plan, metrics, and where it came from
who calls: cli.main

Read next: checkpoint/lineage.py, train/plan.py (what a plan says).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nanochat.cli.terminal import neutralize
from nanochat.common.config import CommonOptions
from nanochat.common.errors import NanochatError
from nanochat.common.files import read_json

if TYPE_CHECKING:
    from nanochat.checkpoint.lineage import Ancestor

__all__ = ["Config", "run"]

WIDTH = 18  # of the names: most plans and configs have none longer
CHEAP_BYTES = 512 * 2**20  # are hashed in a second or less; larger files are compared by size


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Show what a model is: its config, the plan it was trained by, what was measured, and which
    run and step it came from, back to the first."""

    model: tyro.conf.Positional[str]
    """A run (d12, d12/sft, d12/sft@1500), or a directory."""


def run(config: Config) -> int:
    """0 once it is printed.

    Raises: CheckpointError for the model, and where it is damaged: its sizes are always compared,
            its hashes where that is cheap.
    """
    from nanochat.checkpoint.lineage import lineage
    from nanochat.checkpoint.resolve import read, resolve
    from nanochat.model.cost import count_parameters

    path = resolve(config.model, config.home)
    files = _verified(path)
    checkpoint = read(path, with_hashes=False)
    line = lineage(path)
    shown = {
        "model": line[0].name,
        "path": str(path),
        "files": files,
        "weights": count_parameters(checkpoint.config).total,
        "tokenizer": {
            "vocab_size": checkpoint.tokenizer.vocab_size,
            "content_hash": checkpoint.tokenizer.content_hash,
        },
        "config": checkpoint.config.to_json(),
        "plan": _of_stage(path, "plan.json"),
        "metrics": dict(checkpoint.state.get("metrics") or {}),
        "val_bpb": _val_bpb(path),
        "lineage": [_plain(ancestor) for ancestor in line],
    }
    print(json.dumps(shown) if config.json else neutralize("\n".join(_lines(shown))))
    return 0


def _verified(path: Path) -> str:
    """What was compared with the manifest, in one line.

    Raises: CheckpointError for a file that is not as it says.
    """
    from nanochat.checkpoint.manifest import MANIFEST, read_manifest, verify_file

    if not (path / MANIFEST).is_file():
        return "of another program, which keeps no sizes or hashes"
    large = []
    for name, entry in read_manifest(path / MANIFEST).files.items():
        verify_file(path / name, entry, with_hash=False)
        if (path / name).stat().st_size > CHEAP_BYTES:
            large.append(name)
        else:
            verify_file(path / name, entry)
    if not large:
        return "sizes and SHA-256 as in the manifest"
    return f"sizes as in the manifest, SHA-256 of {', '.join(large)} only by nanochat verify"


def _lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{shown['model']}   {shown['path']}", "")
    yield _line("files", shown["files"])
    yield _line("weights", f"{shown['weights']:,}")
    tokenizer = shown["tokenizer"]
    yield _line(
        "tokenizer", f"{tokenizer['vocab_size']:,} tokens   ({tokenizer['content_hash'][:12]})"
    )
    reasons = shown["plan"].get("reasons", {})
    plan = {name: value for name, value in shown["plan"].items() if name != "reasons"}
    for title, values in (
        ("config", shown["config"]),
        ("plan", plan),
        ("why", reasons),
        ("metrics", shown["metrics"]),
        ("validation (bits per byte)", shown["val_bpb"]),
    ):
        if values:
            yield from ("", title)
            yield from (_line(name, _text(value)) for name, value in values.items())
    yield from ("", "came from")
    for ancestor in shown["lineage"]:
        yield _line(ancestor["name"], "" if ancestor["is_there"] else "no longer here")


def _line(name: str, text: str) -> str:
    return f"  {name:{WIDTH}}  {text}".rstrip()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _of_stage(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of the stage a checkpoint lies in; empty where there is none."""
    try:
        value = read_json(path.parents[1] / name)
    except (OSError, NanochatError, IndexError):
        return {}
    return value if isinstance(value, dict) else {}


def _val_bpb(path: Path) -> dict[str, Any]:
    """Bits per byte by step, of the checkpoints that were validated."""
    values = _of_stage(path, "checkpoints/best.json").get("val_bpb")
    return values if isinstance(values, dict) else {}


def _plain(ancestor: "Ancestor") -> dict[str, Any]:
    return {
        "name": ancestor.name,
        "run": ancestor.run,
        "stage": ancestor.stage,
        "step": ancestor.step,
        "path": str(ancestor.path),
        "is_there": ancestor.is_there,
    }
