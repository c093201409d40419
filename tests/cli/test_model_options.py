"""model_options.py: flags become an engine and sampling parameters."""

from pathlib import Path

import pytest

from nanochat.checkpoint.resolve import run_directory
from nanochat.cli import chat, serve
from nanochat.cli.model_options import ChoiceOptions, ModelOptions, SamplingOptions, open_model
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


def test_sampling_flags(tiny_tokenizer: Tokenizer) -> None:
    options = SamplingOptions(model="m", max_tokens=5, temperature=0.5, top_k=None, top_p=0.9)
    first, second = options.sampling(tiny_tokenizer), options.sampling(tiny_tokenizer)
    assert (first.max_tokens, first.temperature, first.top_k, first.top_p) == (5, 0.5, None, 0.9)
    assert first.seed != second.seed
    assert SamplingOptions(model="m", seed=9).sampling(tiny_tokenizer).seed == 9
    ends = {tiny_tokenizer.bos, tiny_tokenizer.special("<|assistant_end|>")}
    assert set(first.stop_tokens) == ends
    assert ChoiceOptions(model="m", top_k=7).choice().top_k == 7
    with pytest.raises(ConfigError, match=r"temperature is 11.*; top_p is 2"):
        SamplingOptions(model="m", temperature=11, top_p=2)


@pytest.mark.parametrize("kv_memory", [float("nan"), float("inf"), 0.0, -1.0])
def test_memory_is_a_number_of_gib(kv_memory: float) -> None:
    for options in (ModelOptions, ChoiceOptions, SamplingOptions, chat.Config, serve.Config):
        with pytest.raises(ConfigError, match=r"kv_memory is .*, expected GiB above 0"):
            options(model="absent", kv_memory=kv_memory)


def test_a_model_is_opened_by_name_or_by_folder(home: Path, tiny_tokenizer: Tokenizer) -> None:
    save_model(home, tiny_tokenizer, stage="sft")
    opened = open_model(ModelOptions(model="tiny", dtype="bfloat16", device="cpu"), max_rows=3)
    assert (opened.name, opened.is_chat, opened.engine.max_rows) == ("tiny", True, 3)
    assert opened.engine.forward.format == "bfloat16"
    save_model(home, tiny_tokenizer, run="base", stage="pretrain")
    folder = run_directory(home, "base")
    opened = open_model(ModelOptions(model=str(folder), dtype="float32"))
    assert (opened.name, opened.is_chat) == ("base", False)
    with pytest.raises(CheckpointError, match=r"'tniy'.*did you mean 'tiny'"):
        open_model(ModelOptions(model="tniy"))
    with pytest.raises(ConfigError, match="device 'abacus' is not usable"):
        open_model(ModelOptions(model="tiny", device="abacus"))
