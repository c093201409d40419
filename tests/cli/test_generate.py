"""generate.py through the command line: exact tokens, honest cutting, one line for a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import generate as generate_module
from nanochat.cli.generate import cut_prompt, read_prompts
from nanochat.cli.main import main
from nanochat.cli.model_options import Opened
from nanochat.common.errors import DataError
from nanochat.engine.engine import Engine
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import CONTEXT_LEN, save_model
from tests.engine.conftest import random_model
from tests.engine.test_engine import scripted
from tests.twins.generation import assert_greedy

EXACT = ["--dtype", "float32", "--temperature", "0"]


@pytest.fixture
def chat_model(home: Path, tiny_tokenizer: Tokenizer) -> GPT:
    return save_model(home, tiny_tokenizer)


@pytest.fixture
def base_model(home: Path, tiny_tokenizer: Tokenizer) -> GPT:
    return save_model(home, tiny_tokenizer, run="base", stage="pretrain")


def generate(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["generate", *argv, *EXACT, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result: dict[str, Any] = json.loads(lines[0])
    return result


@pytest.mark.req("US-1")
def test_a_base_model_continues_text(
    base_model: GPT, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    result = generate(capsys, "base", "-p", "the cat", "--max-tokens", "20", "--seed", "5")
    assert set(result) == {"model", "prompt_tokens", "tokens", "text", "finish_reason", "seed"}
    assert (result["model"], result["seed"]) == ("base", 5)
    assert result["prompt_tokens"] == [tiny_tokenizer.bos, *tiny_tokenizer.encode("the cat")]
    assert_greedy(base_model, result["prompt_tokens"], result["tokens"])
    special = set(tiny_tokenizer.special_tokens.values())
    plain = [token for token in result["tokens"] if token not in special]
    if len(plain) == len(result["tokens"]):  # else half a character may end before one
        assert result["text"] == tiny_tokenizer.decode(plain)
    assert result["finish_reason"] == ("length" if len(result["tokens"]) == 20 else "stop")
    again = [str(token) for token in result["prompt_tokens"]]
    same = generate(capsys, "base", "--prompt-tokens", ",".join(again), "--max-tokens", "20")
    assert same["tokens"] == result["tokens"]


@pytest.mark.req("US-1", "FR-052")
def test_many_prompts_and_several_answers(
    base_model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"the cat"\n\n"a dog\\nand"\n')
    words = ["generate", "base", "--prompts-file", str(file), "--n", "3", "--max-tokens", "6"]
    assert main([*words, "--dtype", "float32", "--seed", "1", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    for result in (first, second):
        assert len(result["answers"]) == 3
        assert result["tokens"] == result["answers"][0]["tokens"]
    alone = ["base", "-p", "the cat", "--max-tokens", "6"]
    assert generate(capsys, *alone)["prompt_tokens"] == first["prompt_tokens"]
    assert main([*words, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.count("--- line 2, answer") == 3
    text = tmp_path / "prompts.txt"
    text.write_text("one\ntwo\n")
    assert read_prompts(text) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b'"a"\n3\n', r"prompts.jsonl:2: 3, expected a string"),
        (b'"a\n', "prompts.jsonl:1: not JSON"),
        (b"\xff\xfe", "not readable as text"),
        (None, "not readable as text"),
    ],
)
def test_a_file_without_prompts(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(file)


def test_a_chat_model_is_asked(
    chat_model: GPT, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = generate(capsys, "tiny", "-p", "cat", "--max-tokens", "3")["prompt_tokens"]
    assert tiny_tokenizer.decode(asked) == (
        "<|bos|><|user_start|>cat<|user_end|><|assistant_start|>"
    )
    plain = generate(capsys, "tiny", "-p", "cat", "--chat", "no")["prompt_tokens"]
    assert tiny_tokenizer.decode(plain) == "<|bos|>cat"


@pytest.mark.req("US-1")
@pytest.mark.parametrize("extra", [[], ["--json"]])
@pytest.mark.parametrize(
    ("is_chat", "tools", "is_used"),
    [(True, "auto", True), (True, "no", False), (False, "auto", False), (False, "yes", True)],
)
def test_the_calculator_is_used_by_who_was_taught_to(
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_chat: bool,
    tools: str,
    is_used: bool,
    extra: list[str],
) -> None:
    special, encode = tiny_tokenizer.special, tiny_tokenizer.encode
    start, end = special("<|python_start|>"), special("<|python_end|>")
    script = [start, *encode("12*7"), end, *encode("so"), special("<|assistant_end|>")]
    engine = scripted(Engine(random_model(), tiny_tokenizer), script)
    opened = Opened(engine=engine, name="m", is_chat=is_chat)
    monkeypatch.setattr(generate_module, "open_model", lambda config: opened)
    assert main(["generate", "m", "-p", "a", "--tools", tools, *EXACT, *extra]) == 0
    out = capsys.readouterr().out
    told = json.loads(out)["text"] + "\n" if extra else out
    shown = "<|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>so\n"
    assert told == (shown if is_used else "12*7so\n")


@pytest.mark.req("FR-013")
def test_text_streams_to_the_terminal(chat_model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    told = generate(capsys, "tiny", "-p", "cat", "--max-tokens", "9")
    assert main(["generate", "tiny", "-p", "cat", "--max-tokens", "9", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert out == told["text"] + "\n"
    assert err == ""


@pytest.mark.req("EC-4")
@pytest.mark.req("US-1")
def test_a_long_prompt_is_cut_from_the_left_and_the_user_is_told(
    base_model: GPT, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    argv = ["generate", "base", "-p", text, "--max-tokens", "6", *EXACT, "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    tokens = json.loads(out)["prompt_tokens"]
    assert tokens[0] == tiny_tokenizer.bos
    assert text.endswith(tiny_tokenizer.decode(tokens[1:]))
    assert len(tokens) == CONTEXT_LEN - 6
    assert len(json.loads(out)["tokens"]) <= 6
    assert err.count("\n") == 1
    assert f"but the context is {CONTEXT_LEN}" in err and f"{len(tokens)} are left" in err

    assert main([*argv, "--strict"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "but the context is 96" in err

    assert main([*argv, "--beyond-context", "slide"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(json.loads(out)["prompt_tokens"]) > CONTEXT_LEN


def test_cutting_keeps_the_beginning_and_leaves_room() -> None:
    tokens = list(range(100))
    assert cut_prompt(tokens, 101, 50, 1) == tokens
    assert cut_prompt(tokens, 100, 30, 1) == [0, *range(31, 100)]
    assert cut_prompt(tokens, 60, 10**6, 2) == [0, 1, *range(72, 100)]
    assert cut_prompt(tokens, 60, 10, 0) == list(range(50, 100))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there is no prompt: pass -p TEXT"),
        (["-p", ""], "the prompt is empty, expected at least one character"),
        (["-p", "a", "--n", "0"], "n is 0, expected at least 1"),
        (["-p", "a", "--prompt-tokens", "1"], "prompt and prompt_tokens are given together"),
        (["--prompt-tokens", "1,x"], "--prompt-tokens is '1,x', expected whole numbers"),
        (["--prompt-tokens", ","], "--prompt-tokens is ',', expected whole numbers"),
        (["--prompt-tokens", "1,300"], "prompt token 300 at place 1 is outside the vocabulary"),
        (["--prompt-tokens=-1"], "prompt token -1 at place 0 is outside the vocabulary"),
        (["-p", "a", "--temperature", "99"], "temperature is 99.0, expected 0 to 10"),
        (["-p", "a", "--max-tokens", "0"], "max_tokens is 0, expected at least 1"),
        (["-p", "a", "--dtype", "int3"], "--dtype is 'int3', expected"),
        (["-p", "a", "--kv-memory", "nan"], "kv_memory is nan, expected GiB above 0"),
        (["-p", "a", "--kv-memory", "inf"], "kv_memory is inf, expected GiB above 0"),
        (["-p", "a", "--kv-memory=-1"], "kv_memory is -1, expected GiB above 0"),
        (["-p", "a", "--kv-memory", "0"], "kv_memory is 0, expected GiB above 0"),
    ],
)
@pytest.mark.req("EC-3")
def test_mistakes_are_one_line(
    base_model: GPT, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "base", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.req("FR-048")
def test_a_folder_of_the_reference_is_a_model(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_dir / "parity" / "v5-2026-07"
    figures = json.loads((folder / "expected.json").read_text())["generation"]
    model = str(folder / "base" / "base_checkpoints" / "d4")
    for figure in (figures[0], figures[-1]):
        prompt, all_tokens = figure["prompt_tokens"], figure["greedy_tokens"]
        result = generate(
            capsys, model, "--prompt-tokens", ",".join(map(str, prompt)),
            "--max-tokens", str(len(all_tokens) - len(prompt)), "--beyond-context", "slide",
        )  # fmt: skip
        assert result["prompt_tokens"] + result["tokens"] == all_tokens
        assert result["model"] == "d4"
