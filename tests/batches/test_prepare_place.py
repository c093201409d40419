"""Where a corpus may be prepared, and what --overwrite removes: our own names, and nothing else."""

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
