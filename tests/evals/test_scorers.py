"""Regions and verdicts, with tokens written by hand."""

import math
from collections.abc import Sequence

import pytest

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation, Message
from nanochat.evals.scorers import Encoder, Prepared, Scored, num_common, prepare, verdict
from nanochat.evals.task import Kind, Mode, Sample

CONTEXT_LEN = 12


def encoder(can_slide: bool = True) -> Encoder:
    """A token a character; 0 begins a text; "ab" is one token, 1000."""

    def encode(text: str) -> list[int]:
        return [1000 if each == "\0" else ord(each) for each in text.replace("ab", "\0")]

    def render(conversation: Conversation) -> list[int]:
        return [0, 1, *encode(str(conversation[-1].content)), 2]

    return Encoder(
        bos=0,
        encode_batch=lambda texts: [encode(text) for text in texts],
        render=render,
        context_len=CONTEXT_LEN,
        can_slide=can_slide,
    )


def prepared(
    sample: Sample, kind: Kind, mode: Mode = "default", can_slide: bool = True
) -> Prepared:
    return prepare([sample], kind, mode, encoder(can_slide))[0]


def sample_of(prompt: str, *choices: str, gold: int = 0, ending: str = "") -> Sample:
    return Sample(sample_id="s", prompt=prompt, choices=choices, gold=gold, ending=ending)


def scored(losses: Sequence[Sequence[float]]) -> list[Scored]:
    return [
        Scored([-loss for loss in each], [5] * len(each), [5] * len(each), [1.0] * len(each))
        for each in losses
    ]


def test_common_beginnings_and_ends() -> None:
    assert num_common([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert num_common([[1, 2, 3], [9, 3], [3]], from_end=True) == 1
    assert num_common([[7]]) == 1


@pytest.mark.req("FR-037")
def test_the_reference_scores_from_the_first_difference_and_default_the_whole_choice() -> None:
    sample = sample_of("Q ", "same x", "same yz")
    assert prepared(sample, "multiple_choice", "nanochat").places == [1 + 7, 1 + 7]
    default = prepared(sample, "multiple_choice")
    assert default.places == [1 + 2, 1 + 2]
    assert default.compat_places == [8, 8]


@pytest.mark.req("FR-037")
def test_an_option_that_begins_all_others_is_nan_in_the_reference_and_scored_by_default() -> None:
    first = sample_of("Q ", "x", "xy", gold=1)
    compat = prepared(first, "multiple_choice", "nanochat")
    assert compat.places == [4, 4]
    assert compat.flags == ("empty_region",)
    # NaN at index 0 is the smallest for Python; elsewhere it never is.
    assert verdict(compat, scored([[], [0.1]])).choice == 0
    second = prepared(sample_of("Q ", "xy", "x"), "multiple_choice", "nanochat")
    assert verdict(second, scored([[9.0], []])).choice == 0
    by_default = prepared(first, "multiple_choice")
    assert by_default.places == [3, 3]
    assert by_default.flags == ()


@pytest.mark.req("FR-037")
def test_a_token_across_prompt_and_choice_belongs_to_the_choice() -> None:
    assert prepared(sample_of("Qa", "b", "c"), "multiple_choice").places == [2, 3]


@pytest.mark.req("FR-037")
def test_of_identical_options_the_first_wins_and_counts_as_right_by_default() -> None:
    sample = sample_of("Q ", "same", "same", "other", gold=1)
    losses = scored([[1.0], [1.0], [2.0]])
    assert not verdict(prepared(sample, "multiple_choice", "nanochat"), losses).is_correct
    found = verdict(prepared(sample, "multiple_choice"), losses)
    assert found.is_correct and found.choice == 0
    assert found.details["flags"] == ["identical", "differs"]


@pytest.mark.req("FR-037")
def test_the_lowest_mean_wins_not_the_lowest_sum_and_a_difference_of_modes_is_counted() -> None:
    sample = sample_of("Q ", "aax", "aayzw", gold=0)
    found = verdict(
        prepared(sample, "multiple_choice"), scored([[3.0, 3.0, 1.0], [0.1, 0.1, 1.1, 1.1, 1.1]])
    )
    assert found.choice == 1 and not found.is_correct
    assert found.details["flags"] == ["differs"]  # x alone is better than yzw
    assert found.explanation == "chose 1, right is 0"
    assert found.choice_logprobs == pytest.approx((-7.0, -3.5))
    assert found.choice_tokens == (3, 5)


@pytest.mark.req("FR-037")
def test_schema_scores_what_all_texts_end_with() -> None:
    sample = sample_of("", "one ", "three ", ending="end")
    both = prepared(sample, "schema"), prepared(sample, "schema", "nanochat")
    assert [each.places for each in both] == [[3, 5], [3, 5]]  # both end in "e end"
    same = sample_of("", "x", "x", ending="y")
    assert prepared(same, "schema", "nanochat").places == [3, 3]  # nothing stands before: NaN
    assert prepared(same, "schema").places == [1, 1]


@pytest.mark.req("FR-037")
def test_a_continuation_counts_when_every_token_is_the_likeliest() -> None:
    each = prepared(sample_of("Say ", "it"), "language_modeling")
    assert each.places == [1 + 3]  # the blank joins the continuation
    right = verdict(each, [Scored([-1.0, -1.0], [7, 8], [7, 8], [1.0, 1.0])])
    assert right.is_correct and right.details["num_prompt_tokens"] == 4
    wrong = verdict(each, [Scored([-1.0, -1.0], [7, 8], [7, 9], [1.0, 0.5])])
    assert not wrong.is_correct and wrong.explanation == "1 of 2 tokens are not the likeliest"
    assert wrong.details["predicted"] == [7, 9]


@pytest.mark.req("FR-037")
def test_a_prompt_that_is_no_beginning_ends_the_reference_and_is_encoded_apart_by_default() -> None:
    sample = sample_of("xa", "b")
    with pytest.raises(EvalError, match="assertion"):
        prepared(sample, "language_modeling", "nanochat")
    apart = prepared(sample, "language_modeling")
    assert apart.texts == [[0, ord("x"), ord("a"), ord("b")]]
    assert apart.places == [3] and apart.flags == ("separate",)


@pytest.mark.req("FR-038", "FR-041")
def test_letters_stand_behind_the_rendered_chat_and_are_one_token() -> None:
    sample = Sample(sample_id="s", prompt=(Message("user", "Q"),), choices=("A", "B"), gold=1)
    each = prepared(sample, "letter_choice")
    assert each.texts == [[0, 1, ord("Q"), 2, ord("A")], [0, 1, ord("Q"), 2, ord("B")]]
    assert each.places == [4, 4]
    assert verdict(each, scored([[2.0], [1.0]])).is_correct
    long = Sample(sample_id="s", prompt=(Message("user", "Q"),), choices=("A", "10"))
    with pytest.raises(EvalError, match="'10' is 2 tokens"):
        prepared(long, "letter_choice")


@pytest.mark.req("FR-037")
def test_beyond_the_context_the_reference_slides_ours_is_cut_and_another_is_cut_as_it_cuts() -> (
    None
):
    sample = sample_of("0123456789Q ", "xx", "y")
    slides = prepared(sample, "multiple_choice", "nanochat")
    assert [len(text) for text in slides.texts] == [15, 14]
    cut = prepared(sample, "multiple_choice")
    assert [len(text) for text in cut.texts] == [12, 11]  # the same is cut of both
    assert cut.texts[0][0] == 0 and cut.places == [10, 10] and cut.flags == ("cut",)
    other = prepared(sample, "multiple_choice", "nanochat", can_slide=False)
    assert [len(text) for text in other.texts] == [12, 12]
    assert other.places == [10, 11]


def test_the_mean_loss_of_nothing_is_no_number() -> None:
    assert math.isnan(Scored([], [], [], []).mean_loss)
