"""hub.py against a Hub on this machine: what is loaded, resumed, pinned, and refused."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from nanochat.checkpoint.hub import PREFIX, HubReference, download, needed_files
from nanochat.checkpoint.huggingface import PADDING, TEMPLATE
from nanochat.checkpoint.resolve import load, read_newest, resolve
from nanochat.cli.main import main
from nanochat.common.errors import CheckpointError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import ReferenceDirectory
from tests.checkpoint.stand_in_hub import Repository, StandInHub, running_hub
from tests.checkpoint.test_huggingface import export
from tests.conftest import REPOSITORY
from tests.engine.conftest import random_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A Hub, an empty cache, no token.  The variables are read when huggingface_hub is imported,
    so here their values are replaced; test_from_the_command_line sets them."""
    constants = huggingface_hub.constants
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
        huggingface_hub.close_session()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


@pytest.fixture
def native(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return export(tmp_path / "native", tiny_tokenizer).directory


def assert_is_the_model(reference: str) -> None:
    loaded = load(reference).model
    for (name, a), (_, b) in zip(
        loaded.named_parameters(), random_model("v1").named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


# ------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/name", HubReference("org/name")),
        ("hf:org/name@v1.0", HubReference("org/name", "", "v1.0")),
        ("hf:org/name@refs/pr/1", HubReference("org/name", "", "refs/pr/1")),
        ("hf:o-r.g/n_a-m.e/a/d20@x", HubReference("o-r.g/n_a-m.e", "a/d20", "x")),
    ],
)
@pytest.mark.req("FR-046")
def test_references(text: str, expected: HubReference) -> None:
    assert HubReference.parse(text) == expected
    assert str(expected) == text and text.startswith(PREFIX)


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:name", "hf:org/", "hf:../x", "hf:a/../b", "hf:a/b/..", "hf:a/b@", "hf:a b/c"],
)
@pytest.mark.req("FR-062")
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(CheckpointError, match="expected hf:org/name or hf:org/name@revision"):
        resolve(text)


# ------------------------------------------------------------------------------------- which files


@pytest.mark.req("FR-046")
def test_only_what_is_needed() -> None:
    wanted = HubReference("org/name")
    common = ["config.json", "tokenizer.json", "README.md", "modeling_nanochat.py", "x.bin"]
    whole = [*common, "model.safetensors", TEMPLATE, PADDING, "optimizer.safetensors", "x/y.json"]
    assert needed_files(whole, wanted) == [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        TEMPLATE,
        PADDING,
    ]
    index, parts = "model.safetensors.index.json", ["model-1.safetensors", "model-2.safetensors"]
    assert needed_files([*common, index, *parts], wanted) == [
        "config.json",
        "tokenizer.json",
        index,
        *parts,
    ]
    theirs = ["model_000500.pt", "meta_000500.json", "model_001000.pt", "meta_001000.json"]
    theirs += ["optim_001000_rank0.pt", "tokenizer.pkl", "token_bytes.pt", "README.md"]
    assert needed_files(theirs, wanted) == ["meta_001000.json", "tokenizer.pkl", "model_001000.pt"]
    moments = ["optim_001000_rank0.pt", "optim_001000_rank1.pt"]
    others = ["optim_000500_rank0.pt", "optim_001000_rank1.json"]
    with_moments = needed_files([*theirs, *others, moments[1]], wanted, with_optimizer=True)
    assert with_moments[3:] == moments, "of every device, of this step"
    assert needed_files([*theirs, *others], wanted, step=500, with_optimizer=True) == [
        "meta_000500.json",
        "tokenizer.pkl",
        "model_000500.pt",
        "optim_000500_rank0.pt",
    ]
    with pytest.raises(CheckpointError, match="hf:org/name: has no step 7, it has 500, 1000"):
        needed_files(theirs, wanted, step=7)
    both = [*theirs, "config.json", "tokenizer.json", "model.safetensors"]
    assert needed_files(both, wanted)[2] == "model.safetensors", "rather than a pickle"
    assert needed_files([*theirs, "config.json"], wanted)[2] == "model_001000.pt"


@pytest.mark.req("FR-046")
def test_folders_of_a_repository() -> None:
    names = ["tokenizer/tokenizer.pkl", "README.md"]
    for folder in ("base_checkpoints/d20", "chatsft_checkpoints/d20"):
        names += [f"{folder}/model_000100.pt", f"{folder}/meta_000100.json"]
    assert needed_files(names, HubReference("o/n", "chatsft_checkpoints/d20")) == [
        "chatsft_checkpoints/d20/meta_000100.json",
        "tokenizer/tokenizer.pkl",
        "chatsft_checkpoints/d20/model_000100.pt",
    ]
    with pytest.raises(
        CheckpointError,
        match="hf:o/n: holds no model that can be read: try hf:o/n/base_checkpoints/d20, hf",
    ):
        needed_files(names, HubReference("o/n"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds no model that can be read \(no model.safetensors"),
        (["config.json", "pytorch_model.bin"], "holds no model that can be read"),
        (["model_000100.pt", "tokenizer.pkl"], "holds model_000100.pt but no meta_000100.json"),
        (["model_000100.pt", "meta_000100.json"], r"holds model_000100.pt but no tokenizer\.pkl"),
    ],
)
@pytest.mark.req("EC-2")
def test_repositories_without_a_model(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"hf:o/n: {message}"):
        needed_files(names, HubReference("o/n"))


# ------------------------------------------------------------------------------------- downloads


@pytest.mark.req("FR-046")
def test_a_model_by_its_name_on_the_hub(hub: StandInHub, native: Path) -> None:
    """Loaded once; the second time only the commit is asked for."""
    (native / "optimizer.pt").write_bytes(b"large")
    hub.repositories["org/tiny"] = repository = Repository.of(native)
    assert_is_the_model("hf:org/tiny")
    path = download("hf:org/tiny")
    assert path == resolve("hf:org/tiny")
    assert path.name == repository.commit, "the path says exactly which one it was"
    loaded = sorted(name for name, _ in hub.downloads())
    assert loaded == sorted(
        needed_files(list(repository.commits[repository.commit]), HubReference("org/tiny"))
    )
    assert "optimizer.pt" not in loaded and "README.md" not in loaded


@pytest.mark.req("FR-046", "FR-048")
def test_the_references_own_format(
    hub: StandInHub, reference_directory: ReferenceDirectory, tmp_path: Path
) -> None:
    """As karpathy/nanochat-d32 has it: model, meta and tokenizer.pkl at the root."""
    directory = reference_directory("v1")
    (tmp_path / "root").mkdir()
    for path in (*directory.iterdir(), directory.parents[1] / "tokenizer" / "tokenizer.pkl"):
        shutil.copy(path, tmp_path / "root")
    hub.repositories["karpathy/tiny-d4"] = Repository.of(tmp_path / "root")
    loaded, ours = load("hf:karpathy/tiny-d4"), load(str(directory))
    assert loaded.tokenizer == ours.tokenizer and loaded.step == 30
    for a, b in zip(loaded.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(hub.downloads()) == 3

    directory.parent.rename(directory.parent.with_name("chatsft_checkpoints"))
    hub.repositories["karpathy/whole"] = Repository.of(directory.parents[1])
    there = load("hf:karpathy/whole/chatsft_checkpoints/d4")
    assert (there.stage, there.path.name) == ("sft", "d4"), "by the folder's name"


@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_moments_come_along_where_training_is_to_go_on(
    hub: StandInHub,
    reference_directory: ReferenceDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = reference_directory("v5")
    hub.repositories["org/whole"] = Repository.of(directory.parents[1])
    words = ["import", "hf:org/whole", "--tag", "d4", "--step", "30", "--run"]
    assert main([*words, "bare", "--no-optimizer"]) == 0
    assert not any("optim" in name for name, _ in hub.downloads())
    assert main([*words, "theirs"]) == 0
    assert any("optim_000030_rank0.pt" in name for name, _ in hub.downloads())
    assert read_newest("bare", with_optimizer=True)[1].optimizer is None
    moments = read_newest("theirs", with_optimizer=True)[1].optimizer
    assert moments is not None and int(moments["num_steps"]) == 30
    there = read_newest("hf:org/whole/base_checkpoints/d4", with_optimizer=True)[1]
    assert there.optimizer is not None
    capsys.readouterr()
    assert main([*words[:2], "--tag", "d9", "--run", "x"]) == 2
    assert "has no model 'd9', name one of hf:org/whole/base_ch" in capsys.readouterr().err
    assert main(["import", "hf:org/whole", "--tag", "d4", "--step", "7", "--run", "x"]) == 2
    assert "has no step 7, it has 30" in capsys.readouterr().err
    offline(monkeypatch)
    assert main([*words, "again"]) == 0
    assert read_newest("again", with_optimizer=True)[1].optimizer is not None


@pytest.mark.req("FR-046")
def test_revisions_are_pinned(hub: StandInHub, native: Path, tiny_tokenizer: Tokenizer) -> None:
    hub.repositories["org/tiny"] = repository = Repository.of(native)
    first = repository.commit
    other = Repository.of(export(native.with_name("v5"), tiny_tokenizer, "v5").directory)
    repository.commits |= other.commits
    repository.branches |= {"main": other.commit, "v1.0": first}
    assert resolve("hf:org/tiny").name == other.commit
    assert resolve("hf:org/tiny@v1.0").name == resolve(f"hf:org/tiny@{first}").name == first
    assert load("hf:org/tiny@v1.0").model.config == random_model("v1").config
    assert load("hf:org/tiny").model.config == random_model("v5").config
    with pytest.raises(CheckpointError, match="hf:org/tiny@v9: the repository has no such revisi"):
        resolve("hf:org/tiny@v9")


@pytest.mark.req("FR-046", "EC-5")
def test_a_broken_download_goes_on_where_it_broke(
    hub: StandInHub, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the weights; what had come is not asked for again.  huggingface_hub 2 goes on by
    itself, 1 when the same is run again."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.repositories["org/tiny"] = Repository.of(native)
    hub.break_after["model.safetensors"] = [50_000, 30_000]
    for _ in range(2):
        with contextlib.suppress(CheckpointError):
            resolve("hf:org/tiny")
    assert_is_the_model("hf:org/tiny")
    ranges = [ranges for name, ranges in hub.downloads() if name == "model.safetensors"]
    assert ranges == ["", "bytes=50000-", "bytes=80000-"]


@pytest.mark.req("EC-5")
def test_a_download_that_fails_keeps_what_is_complete(
    hub: StandInHub, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.repositories["org/tiny"] = Repository.of(native)
    hub.break_after["model.safetensors"] = [10] * 50
    with pytest.raises(CheckpointError, match="hf:org/tiny: .*HF_HUB_OFFLINE=1"):
        resolve("hf:org/tiny")
    hub.break_after.clear()
    hub.asked.clear()
    assert_is_the_model("hf:org/tiny")
    assert [name for name, _ in hub.downloads()] == ["model.safetensors"]


@pytest.mark.req("FR-046")
def test_offline_the_cache_is_enough(
    hub: StandInHub, native: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["org/tiny"] = Repository.of(native)
    resolve("hf:org/tiny")
    hub.asked.clear()
    offline(monkeypatch)
    assert_is_the_model("hf:org/tiny")
    assert_is_the_model(f"hf:org/tiny@{hub.repositories['org/tiny'].commit}")
    assert hub.asked == []
    with pytest.raises(CheckpointError, match="hf:org/other: is not in the cache, and HF_HUB_OFFL"):
        resolve("hf:org/other")
    with pytest.raises(CheckpointError, match="hf:org/tiny@v2: is not in the cache"):
        resolve("hf:org/tiny@v2")
    for path in (tmp_path / "cache").rglob("model.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="offline, and only a part of it is in the cache"):
        resolve("hf:org/tiny")


@pytest.mark.req("EC-2", "FR-047")
def test_what_the_hub_refuses(
    hub: StandInHub, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one line that says what to do."""
    hub.repositories["org/gated"] = Repository.of(native, token="secret")
    cases = {
        "hf:org/absent": "there is no such repository, or it is private: check the name",
        "hf:org/gated": "is gated: ask for access on its page, then log in",
    }
    for reference, message in cases.items():
        with pytest.raises(CheckpointError, match=f"{reference}: {message}") as caught:
            resolve(reference)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert_is_the_model("hf:org/gated")
    hub.status = 403
    with pytest.raises(CheckpointError, match=r"hf:org/x: http://127.* refused \(.*403") as caught:
        resolve("hf:org/x")
    assert "\n" not in str(caught.value)


@pytest.mark.req("EC-2")
def test_without_a_connection(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r":9 cannot be reached, or broke off \(.*HF_HUB_OFFLINE=1"
    ) as caught:
        resolve("hf:org/tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.req("FR-046")
def test_another_kind_of_model_is_refused_before_its_weights_are_loaded(
    hub: StandInHub, native: Path
) -> None:
    (native / "config.json").write_text('{"model_type": "llama"}')
    hub.repositories["org/llama"] = Repository.of(native)
    with pytest.raises(CheckpointError, match="is for 'llama', expected nanochat"):
        resolve("hf:org/llama")
    assert "model.safetensors" not in {name for name, _ in hub.downloads()}


@pytest.mark.req("FR-062")
def test_names_are_patterns_of_nobody(hub: StandInHub, native: Path) -> None:
    """A file named like a pattern loads itself alone."""
    hub.repositories["org/tiny"] = repository = Repository.of(native)
    files = repository.commits[repository.commit]
    files["model-[0-9].safetensors"] = b"x"
    files["model.safetensors.index.json"] = b"{}"
    files["model-1.safetensors"] = files.pop("model.safetensors")
    with pytest.raises(CheckpointError, match="no weight_map"):
        load("hf:org/tiny")
    assert ("model-[0-9].safetensors", "") in hub.downloads()


COMMANDS = """
from nanochat.cli.main import main
print(main(["import", "hf:org/tiny", "--run", "tiny"]))
print(main(["import", "hf:org/absent", "--run", "x"]))
"""


@pytest.mark.req("FR-046", "FR-067")
def test_from_the_command_line(hub: StandInHub, native: Path, tmp_path: Path) -> None:
    """With the variables a user sets: HF_ENDPOINT and HF_HOME."""
    hub.repositories["org/tiny"] = Repository.of(native)
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "NANOCHAT_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, code, refused = done.stdout.splitlines()
    assert first.startswith("tiny/midtrain@9 is ") and code == "0" and refused == "2"
    assert first.endswith(hub.repositories["org/tiny"].commit)
    assert (tmp_path / "hf" / "hub" / "models--org--tiny").is_dir()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nanochat: ")]
    assert line.startswith("nanochat: hf:org/absent: there is no such repository")
