"""The whole path: text -> tokenizer -> pretrain -> midtrain -> sft -> serve -> an answer."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nanochat.cli.main import main
from tests.conftest import REPOSITORY

# Of the processor's time, so that what other programs take does not count: alone on the machine it
# is more than what a clock shows.  30 seconds on an EPYC with AVX2.
LONGEST_S = 60
COLOURS = {"fox": "red", "frog": "green", "crow": "black", "swan": "white"}


def write_text(path: Path) -> None:
    """Documents about the colours of animals."""
    dice = random.Random(0)
    lines = []
    for _ in range(400):
        animals = dice.sample(sorted(COLOURS), 3)
        facts = [f"The {animal} is {COLOURS[animal]}." for animal in animals]
        lines.append(json.dumps({"text": " ".join(facts)}))
    path.write_text("\n".join(lines))


def write_chats(path: Path) -> None:
    """Conversations about them, three questions each."""
    dice = random.Random(1)
    lines = []
    for _ in range(500):
        turns = []
        for animal in dice.sample(sorted(COLOURS), 3):
            question = dice.choice(["What colour is the {}?", "The {} is what colour?"])
            turns.append({"role": "user", "content": question.format(animal)})
            answer = f"The {animal} is {COLOURS[animal]}."
            turns.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines))


@contextmanager
def served(run: str) -> Iterator[str]:
    """`nanochat serve` as a user starts it; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat", "serve", run, "--port", "0", "--json"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.req("FR-067")
@pytest.mark.req("SC-003")
@pytest.mark.req("US-2")
def test_text_becomes_a_chat_in_the_browser(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_s = processor_s()
    text, chats = tmp_path / "text.jsonl", tmp_path / "chats.jsonl"
    write_text(text)
    write_chats(chats)
    tokenizer = home / "tokenizer"
    small = ["--batch-tokens", "1024", "--device", "cpu", "--dtype", "float32", "--compile", "off"]
    for argv in (
        ["tokenizer", "train", str(text), "--vocab-size", "300"],
        ["pretrain", "--data", str(text), "--tokenizer", str(tokenizer / "tokenizer.json"),
         "--run", "zoo", "--depth", "2", "--head-dim", "32", "--aspect-ratio", "32",
         "--context-len", "128", "--num-steps", "60", *small],
        ["midtrain", "zoo", "--chats", str(chats), "--num-epochs", "2", "--lr-scale", "2", *small],
        ["sft", "zoo", "--chats", str(chats), "--lr-scale", "2", *small],
    ):  # fmt: skip
        assert main(argv) == 0, capsys.readouterr().err
    capsys.readouterr()

    with served("zoo") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        page = httpx.get(url)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert 'id="composer"' in page.text
        assert "completions" in httpx.get(f"{url}/api.js").text
        answers = {animal: ask(client, f"What colour is the {animal}?") for animal in COLOURS}
    right = {animal: f"The {animal} is {colour}." for animal, colour in COLOURS.items()}
    assert sum(answers[animal] == right[animal] for animal in COLOURS) >= 3, answers
    assert main(["generate", "zoo", "-p", "The fox is what colour?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("The ")
    assert processor_s() - start_s < LONGEST_S


def processor_s() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


def ask(client: openai.OpenAI, question: str) -> str:
    """The answer, whole and streamed alike."""
    fields: Any = {
        "model": "zoo",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 40,
    }
    whole = client.chat.completions.create(**fields).choices[0].message.content
    chunks = list(client.chat.completions.create(**fields, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    return streamed
