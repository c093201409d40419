"""load.py: every form, and a folder of any."""

import json
import shutil
from pathlib import Path

import pytest

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.huggingface import tokenizer_to_hf_json
from nanochat.tokenizer.load import FILE_NAME, FILE_NAMES, load_tokenizer
from nanochat.tokenizer.tiktoken_file import save_tiktoken, sidecar_path
from nanochat.tokenizer.tokenizer import GPT4_SPLIT_PATTERN, Tokenizer

PICKLE = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"


@pytest.mark.req("US-5")
def test_all_forms_and_folders(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert load_tokenizer(PICKLE) == tokenizer
    with pytest.raises(TokenizerError, match="has none of tokenizer.json, tokenizer.pkl, tokeniz"):
        load_tokenizer(tmp_path)
    other = Tokenizer([bytes([byte]) for byte in range(256)])
    save_tiktoken(other, tmp_path / "tokenizer.tiktoken")
    assert load_tokenizer(tmp_path) == load_tokenizer(tmp_path / "tokenizer.tiktoken") == other
    shutil.copy(PICKLE, tmp_path / "tokenizer.pkl")
    assert load_tokenizer(tmp_path) == tokenizer, "tokenizer.pkl goes before tokenizer.tiktoken"
    other.save(tmp_path / FILE_NAME)
    assert load_tokenizer(tmp_path) == other, "tokenizer.json goes before both"
    assert load_tokenizer(tmp_path / "tokenizer.json") == other
    assert FILE_NAMES[0] == FILE_NAME


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.req("FR-031")
def test_hugging_faces_json_is_told_from_ours(
    indent: int | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    raw = tokenizer_to_hf_json(tokenizer)
    late = {key: raw[key] for key in sorted(raw, key=lambda key: key == "added_tokens")}
    for content in (raw, late):
        (tmp_path / FILE_NAME).write_text(json.dumps(content, indent=indent))
        assert load_tokenizer(tmp_path) == tokenizer
    # A token of ours may spell their key: what the file begins with decides.
    ours = Tokenizer([*[bytes([byte]) for byte in range(256)], b'"added_tokens"'])
    ours.save(tmp_path / FILE_NAME)
    assert load_tokenizer(tmp_path) == ours


def test_a_pattern_is_for_what_does_not_say_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"
    save_tiktoken(tokenizer, path)
    sidecar_path(path).unlink()
    assert load_tokenizer(path, "nanochat") == tokenizer
    assert load_tokenizer(path, "gpt4").pattern == GPT4_SPLIT_PATTERN
    with pytest.raises(TokenizerError, match="tokenizer.pkl says itself how text is cut"):
        load_tokenizer(PICKLE, "gpt4")


@pytest.mark.req("EC-2")
def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent does not exist.*nanochat tokenizer train"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match=r"absent\.pkl: cannot be read"):
        load_tokenizer(tmp_path / "absent.pkl")
    with pytest.raises(TokenizerError, match=r"absent\.tiktoken: cannot be read"):
        load_tokenizer(tmp_path / "absent.tiktoken")
