"""Where a corpus may be prepared, and what --overwrite removes: our own names, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.batches.prepare import PrepareSettings, prepare
from nanochat.batches.prepare_place import begin_anew, is_begun
from nanochat.common.errors import ConfigError
from nanochat.common.pool import InTurn
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.req("FR-034")

OTHERS_SETTINGS = ("{}", '{"editor": {"fontSize": 12}}', "not JSON", '{"version": 1, "rules": []}')


@pytest.fixture
def settings(tmp_path: Path) -> PrepareSettings:
    """Of a hundred short texts."""
    Tokenizer([bytes([byte]) for byte in range(256)]).save(tmp_path / "bytes.json")
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.txt").write_text(f"text number {number} is long enough to stay")
    return PrepareSettings(data=(str(folder),), tokenizer=tmp_path / "bytes.json")


@pytest.mark.parametrize("text", OTHERS_SETTINGS)
def test_another_programs_settings_make_no_directory_ours(
    text: str, settings: PrepareSettings, tmp_path: Path
) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "settings.json").write_text(text)
    (place / "thesis.txt").write_text("mine")
    assert not is_begun(place)
    for refused in (lambda: prepare(settings, place, InTurn()), lambda: begin_anew(place)):
        with pytest.raises(ConfigError, match="something else .settings.json, thesis.txt"):
            refused()
    assert sorted(path.name for path in place.iterdir()) == ["settings.json", "thesis.txt"]
    assert (place / "thesis.txt").read_text() == "mine"


def test_a_directory_with_something_else_is_left_alone(
    settings: PrepareSettings, tmp_path: Path
) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    for refused in (lambda: prepare(settings, place, InTurn()), lambda: begin_anew(place)):
        with pytest.raises(ConfigError, match="holds something else"):
            refused()
    assert (place / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        prepare(settings, place / "thesis.txt", InTurn())


def test_what_was_laid_beside_a_prepared_corpus_stays(
    settings: PrepareSettings, tmp_path: Path
) -> None:
    place = tmp_path / "it"
    found = prepare(settings, place, InTurn())
    (place / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes.txt besides what was prepared"):
        begin_anew(place)
    assert found.train.num_documents and prepare(settings, place, InTurn()).was_there
    (place / "notes.txt").unlink()
    (place / ".report.json.x1.tmp").write_text("half")  # of a process that was killed
    begin_anew(place)
    assert [path.name for path in place.iterdir()] == [".lock"]
    assert not prepare(settings, place, InTurn()).was_there


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty records of two texts each."""
    path = tmp_path / "c.jsonl"
    long = "is long enough to stay"
    records = ({"body": f"body {n} {long}", "text": f"text {n} {long}"} for n in range(40))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_another_column_of_the_same_file_is_another_corpus(
    settings: PrepareSettings, table: Path, tmp_path: Path
) -> None:
    body = replace(settings, data=(f"{table}#body",))
    prepare(body, tmp_path / "it", InTurn())
    with pytest.raises(ConfigError, match=r"files \(c\.jsonl, c\.jsonl#body changed\)"):
        prepare(replace(settings, data=(str(table),)), tmp_path / "it", InTurn())
    assert prepare(body, tmp_path / "it", InTurn()).was_there


def test_a_column_that_is_read_anyway_is_no_other_corpus(
    settings: PrepareSettings, table: Path, tmp_path: Path
) -> None:
    prepare(replace(settings, data=(str(table),)), tmp_path / "it", InTurn())
    ((name, *state),) = json.loads((tmp_path / "it" / "settings.json").read_text())["files"]
    assert name == "c.jsonl" and len(state) == 2  # as before columns were told
    assert prepare(replace(settings, data=(f"{table}#text",)), tmp_path / "it", InTurn()).was_there
