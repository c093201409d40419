"""Programs that speak to OpenAI speak to us: langchain, simonw's llm and litellm converse.

litellm takes 200 MB and wants an older openai than the newest, so it is no dependency of ours: the
slow test installs it into a folder of its own, and is skipped without a package index.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.server.app import ServedModel, create_app
from tests.server.conftest import live
from tests.server.fakes import FakeEngine

pytestmark = [pytest.mark.req("SC-015"), pytest.mark.req("FR-053")]

QUESTIONS = ("My name is Ann.", "What is my name?")


@pytest.fixture
def url(served: ServedModel, engine: FakeEngine) -> Iterator[str]:
    with live(create_app(engine, served)) as address:
        yield f"{address}/v1"


def asked(engine: FakeEngine, served: ServedModel) -> str:
    """What the engine was asked last."""
    return served.tokenizer.decode(engine.requests[-1].prompt_tokens)


TWO_TURNS = (
    "<|bos|><|user_start|>My name is Ann.<|user_end|><|assistant_start|>Hello<|assistant_end|>"
    "<|user_start|>What is my name?<|user_end|><|assistant_start|>"
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain(url: str, engine: FakeEngine, served: ServedModel) -> None:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(base_url=url, api_key=SecretStr("none"), model="tiny", max_retries=0)
    first = model.invoke([HumanMessage(QUESTIONS[0])])
    assert first.content == "Hello"
    conversation = [HumanMessage(QUESTIONS[0]), AIMessage("Hello"), HumanMessage(QUESTIONS[1])]
    pieces = list(model.stream(conversation, stop=["x"], stream_usage=True))
    assert "".join(str(piece.content) for piece in pieces) == "Hello"
    assert any(piece.usage_metadata for piece in pieces)
    assert asked(engine, served) == TWO_TURNS
    assert engine.requests[-1].sampling.stop == ("x",)
    answers = model.batch([QUESTIONS[0], QUESTIONS[1]])
    assert [answer.content for answer in answers] == ["Hello", "Hello"]


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a program says."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_llm(url: str, engine: FakeEngine, served: ServedModel, tmp_path: Path) -> None:
    """Its model is an entry in a file of its folder, and -c goes on with the last conversation."""
    entry = f"- model_id: ours\n  model_name: tiny\n  api_base: {url}\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    environment = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    llm = [sys.executable, "-m", "llm", "prompt", "-m", "ours"]
    assert run([*llm, QUESTIONS[0]], tmp_path, **environment).strip() == "Hello"
    again = run([*llm, "-c", QUESTIONS[1], "-o", "temperature", "0"], tmp_path, **environment)
    assert again.strip() == "Hello"
    assert asked(engine, served) == TWO_TURNS


LITELLM = """
import json, sys
import litellm

litellm.telemetry = False
url, *questions = sys.argv[1:]
messages = []
for question in questions:
    messages.append({"role": "user", "content": question})
    ask = {"model": "openai/tiny", "api_base": url, "api_key": "none", "messages": messages}
    whole = litellm.completion(**ask, max_retries=0)
    pieces = litellm.completion(**ask, stream=True, stream_options={"include_usage": True})
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    messages.append({"role": "assistant", "content": text})
    print(json.dumps([whole.choices[0].message.content, text, whole.usage.total_tokens]))
"""


@pytest.fixture(scope="session")
def litellm_folder() -> Path:
    """litellm and all that it needs."""
    name = f"nanochat-litellm-{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    if not (folder / "done").exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
        done = subprocess.run(
            [*install, "litellm>=1.83"], capture_output=True, text=True, timeout=500
        )
        if done.returncode:
            pytest.skip(f"litellm cannot be installed: {done.stderr.strip()[-300:]}")
        (folder / "done").touch()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_litellm(
    url: str, engine: FakeEngine, served: ServedModel, tmp_path: Path, litellm_folder: Path
) -> None:
    said = run(
        [sys.executable, "-c", LITELLM, url, *QUESTIONS],
        tmp_path,
        PYTHONPATH=str(litellm_folder),
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # else it asks GitHub for a list of prices
    )
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    assert [answer[:2] for answer in answers] == [["Hello", "Hello"]] * 2
    assert asked(engine, served) == TWO_TURNS
