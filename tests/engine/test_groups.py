"""Texts that begin alike, scored together: the same as each whole text by itself."""

import random

import pytest
import torch

from nanochat.common.errors import EngineError, RequestTooLong, TokenizerError
from nanochat.engine.attend_text import attend_masked, attend_text
from nanochat.engine.engine import Engine
from nanochat.engine.groups import Group, TextScore, score_groups
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import CONTEXT_LEN, VOCAB_SIZE


def alone(model: GPT, tokens: list[int], place: int) -> TextScore:
    """One whole text through the model."""
    logprobs_TV = model(torch.tensor([tokens]))[0].log_softmax(-1)
    rows = logprobs_TV[place - 1 : len(tokens) - 1]
    top_N2, best_N2 = rows.topk(2)
    return TextScore(
        rows.gather(1, torch.tensor(tokens[place:], dtype=torch.long)[:, None])[:, 0].tolist(),
        best_N2[:, 0].tolist(),
        (top_N2[:, 0] - top_N2[:, 1]).tolist(),
    )


def groups_of(seed: int, longest: int) -> list[Group]:
    dice = random.Random(seed)

    def text(length: int) -> list[int]:
        return [dice.randrange(VOCAB_SIZE) for _ in range(length)]

    made: list[Group] = []
    for length in (1, 2, 30, longest - 12):
        stem = text(length)
        texts = [stem + text(dice.randrange(1, 12)) for _ in range(dice.randrange(1, 5))]
        made.append([(each, dice.choice((1, length, len(each)))) for each in texts])
    made.append([([5, 6, 7], 2), ([5, 6, 7], 2), ([5, 6], 1)])  # one twice, one begins the other
    made.append([([5, 6, 7], 3)])  # nothing is asked
    return made


@pytest.mark.req("FR-037")
@pytest.mark.parametrize("longest", [CONTEXT_LEN, 3 * CONTEXT_LEN])
def test_a_group_scores_as_each_text_alone(
    any_model: GPT, tiny_tokenizer: Tokenizer, longest: int
) -> None:
    engine = Engine(any_model, tiny_tokenizer, format="float32")
    groups = groups_of(longest, longest)
    for group, scores in zip(
        groups, engine.score_groups(groups, beyond_context="slide"), strict=True
    ):
        for (tokens, place), score in zip(group, scores, strict=True):
            expected = alone(any_model, list(tokens), place)
            assert score.logprobs == pytest.approx(expected.logprobs, abs=LOGITS_ATOL)
            assert score.margins == pytest.approx(expected.margins, abs=2 * LOGITS_ATOL)
            for said, right, margin in zip(score.best, expected.best, score.margins, strict=True):
                assert said == right or margin < LOGITS_ATOL


@pytest.mark.req("FR-037")
def test_equal_texts_score_equally_to_the_last_bit(engine: Engine) -> None:
    dice = random.Random(0)
    one, other = ([dice.randrange(VOCAB_SIZE) for _ in range(20)] for _ in range(2))
    [scores] = score_groups(engine.forward, [[(one, 4), (other, 4), (one, 4)]])
    assert scores[0] == scores[2]


def test_a_group_is_refused_as_a_text_is(engine: Engine) -> None:
    with pytest.raises(RequestTooLong, match=f"97 tokens but the context is {CONTEXT_LEN}"):
        engine.score_groups([[([1] * (CONTEXT_LEN + 1), 1)]])
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        engine.score_groups([[([1, VOCAB_SIZE], 1)]])
    for tokens, place in (([1], 1), ([1, 2], 0), ([1, 2], 3)):
        with pytest.raises(EngineError, match="scored from place"):
            engine.score_groups([[(tokens, place)]])


@pytest.mark.parametrize(("window", "num_groups"), [(None, 1), (7, 1), (7, 3), (200, 2)])
def test_blocks_behind_a_window_see_what_one_masked_product_sees(
    window: int | None, num_groups: int
) -> None:
    torch.manual_seed(0)
    K, T, E = 2, 150, 8
    q_KTGE = torch.randn(K, T, num_groups, E)
    k_KTE, v_KTE = torch.randn(2, K, T, E)
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    is_seen = (distance >= 0) & (distance <= (T if window is None else window))
    mask = torch.zeros(T, T).masked_fill(~is_seen, -torch.inf).repeat_interleave(num_groups, 0)
    whole = attend_masked(q_KTGE, k_KTE, v_KTE, mask, 0.3)
    parts = attend_text(q_KTGE, k_KTE, v_KTE, window, 0.3)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
