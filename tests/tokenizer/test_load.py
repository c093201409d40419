"""load.py: either form, and a folder of either."""

import shutil
from pathlib import Path

import pytest

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.load import FILE_NAME, load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

PICKLE = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"


@pytest.mark.req("US-5")
def test_both_forms_and_folders(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert load_tokenizer(PICKLE) == tokenizer
    shutil.copy(PICKLE, tmp_path / "tokenizer.pkl")
    assert load_tokenizer(tmp_path) == tokenizer
    ours = Tokenizer([bytes([byte]) for byte in range(256)])
    ours.save(tmp_path / FILE_NAME)
    assert load_tokenizer(tmp_path) == ours, "tokenizer.json goes before tokenizer.pkl"
    assert load_tokenizer(tmp_path / "tokenizer.json") == ours


@pytest.mark.req("EC-2")
def test_a_folder_without_one_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="neither tokenizer.json nor tokenizer.pkl in it"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"absent does not exist.*nanochat tokenizer train"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match=r"absent\.pkl: cannot be read"):
        load_tokenizer(tmp_path / "absent.pkl")
