"""--data DIR: one prepared directory, several, and what is refused."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanochat.batches.prepare import PrepareSettings, prepare
from nanochat.batches.prepared import open_prepared
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.pool import InTurn
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.req("FR-034", "FR-035")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared directories of one tokenizer, and a raw file."""
    folder = tmp_path_factory.mktemp("prepared")
    Tokenizer([bytes([byte]) for byte in range(256)]).save(folder / "bytes.json")
    dice = random.Random(0)
    for name in ("one", "two"):
        texts = [" ".join(f"{name}{dice.randrange(99)}" for _ in range(40)) for _ in range(100)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        settings = PrepareSettings(
            data=(str(folder / f"{name}.jsonl"),), tokenizer=folder / "bytes.json"
        )
        prepare(settings, folder / name, InTurn())
    return folder


def test_raw_text_is_not_prepared(folder: Path) -> None:
    assert open_prepared([str(folder / "one.jsonl")]) is None
    assert open_prepared(["data:climbmix", "nowhere"]) is None
    assert open_prepared([]) is None


def test_one_directory_is_read_as_it_is(folder: Path) -> None:
    found = open_prepared([str(folder / "one")])
    assert found is not None
    assert found.tokenizer == folder / "one" / "tokenizer.json"
    assert found.train.num_documents + found.validation.num_documents == 100
    assert str(folder / "one") in found.rule


def test_several_are_one_corpus(folder: Path) -> None:
    both = open_prepared([str(folder / "one"), str(folder / "two")])
    each = [open_prepared([str(folder / name)]) for name in ("one", "two")]
    assert both is not None and each[0] is not None and each[1] is not None
    assert both.train.num_tokens == each[0].train.num_tokens + each[1].train.num_tokens
    assert both.train.tokenizer_hash == each[0].train.tokenizer_hash
    numbers = np.arange(each[0].train.num_documents)
    assert both.train.lengths(numbers).tolist() == each[0].train.lengths(numbers).tolist()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    one = str(folder / "one")
    with pytest.raises(ConfigError, match=r"a part of the data is prepared, .*one\.jsonl is not"):
        open_prepared([one, str(folder / "one.jsonl")])
    with pytest.raises(ConfigError, match="--val-data v.txt is given too"):
        open_prepared([one], ["v.txt"])
    with pytest.raises(DataError, match="was prepared with tokenizer"):
        open_prepared([one], [], "another")
    shutil.copy(folder / "one" / "settings.json", tmp_path)
    with pytest.raises(DataError, match="is being prepared, or was stopped"):
        open_prepared([str(tmp_path)])


@pytest.mark.parametrize("text", ["{}", '{"version": 2, "rules": "strict"}', "[1]", "not JSON"])
def test_text_beside_another_programs_settings_is_raw(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    (tmp_path / "a.txt").write_text("some text")
    assert open_prepared([str(tmp_path)]) is None
