"""What is held out is measured, all together and each source by itself."""

from pathlib import Path

import pytest

from nanochat.batches.mixture import Mixture, Source
from nanochat.batches.store_writer import tokenize_conversations
from nanochat.common.messages import Message
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.texts import TextSource, validator_of
from nanochat.train.validation import HeldOut, Meter
from tests.fakes import random_gpt, tiny_config
from tests.train.makers import plan_of
from tests.train.test_stages import Corpora, corpora, pretrain_config

__all__ = ["corpora"]  # the fixture


@pytest.mark.req("FR-022", "FR-033")
def test_prepared_directories_are_measured_each(corpora: Corpora, tmp_path: Path) -> None:
    """What is one corpus in training has one number, and one for each of its parts."""
    tokenizer, one, other, _ = corpora
    model = random_gpt(tiny_config(2, vocab_size=tokenizer.vocab_size), seed=0)

    def measured(*sources: TextSource) -> dict[str, float]:
        config = pretrain_config(tmp_path, eval_tokens=10**6)
        return dict(validator_of(sources, config, plan_of(1), model, tokenizer.token_bytes)())

    both = Mixture([Source(name="one", store=one), Source(name="other", store=other)])
    whole = measured(TextSource(name="text", train=one, validation=both))
    weighed = measured(
        TextSource(name="one", train=one, validation=one),
        TextSource(name="other", train=one, validation=other, weight=3.0),
    )
    assert whole["val_bpb/one"] == weighed["val_bpb/one"]
    assert whole["val_bpb/other"] == weighed["val_bpb/other"]
    mean = (weighed["val_bpb/one"] + 3 * weighed["val_bpb/other"]) / 4
    assert weighed["val_bpb"] == pytest.approx(mean)
    assert measured(TextSource(name="text", train=one, validation=one)) == {
        "val_bpb": whole["val_bpb/one"]
    }


@pytest.mark.req("FR-022")
def test_an_answer_behind_the_context_is_not_measured(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    conversation = (Message("user", "why? " * 100), Message("assistant", "no"))
    store = tokenize_conversations(
        [conversation],
        lambda each: render_training(each, tiny_tokenizer),
        tiny_tokenizer,
        tmp_path / "chats",
    )
    model = random_gpt(tiny_config(2, vocab_size=tiny_tokenizer.vocab_size), seed=0)
    source = HeldOut(name="chats", store=store)
    for context_len, is_there in ((32, False), (2048, True)):
        meter = Meter(model=model, context_len=context_len, token_bytes=tiny_tokenizer.token_bytes)
        assert meter.can_measure(source, 1) == is_there
