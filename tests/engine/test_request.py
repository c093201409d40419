"""request.py: every value out of range is named, all at once."""

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import ConfigError, TokenizerError
from nanochat.engine.request import (
    ANY_JSON,
    MAX_LOGPROBS,
    NO_TOKEN,
    Request,
    SamplingParams,
    TokenEvent,
)

WRONG: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, True, None, "5"],
    "temperature": [11.0, -0.1, float("nan"), float("inf"), None, "hot", True],
    "top_k": [0, -5, 2.0, True],
    "top_p": [0.0, 1.1, -1, float("nan"), "all"],
    "min_p": [-0.1, 1.5, None],
    "repetition_penalty": [0.0, -1.0, 11, float("nan")],
    "presence_penalty": [-2.1, 2.1, None],
    "frequency_penalty": [-3, 2.5, "much"],
    "logit_bias": [{-1: 1}, {5: 101}, {"5": 1}, {5: float("nan")}, [5], dict.fromkeys(range(1025))],
    "seed": [-1, 2**63, 0.5, None],
    "stop_tokens": [[5], (-1,), ("a",), (True,), 5],
    "stop": ["a stop", ("",), ("x" * 257,), (5,), ["a"], tuple("abcdefghijklmnopq")],
    "logprobs": [-1, MAX_LOGPROBS + 1, 1.0, True],
}  # fmt: skip
WRONG_IN_REQUESTS: dict[str, list[Any]] = {
    "request_id": ["", 5, None],
    "num_samples": [0, 129, 1.0],
    "prompt_logprobs": [-1, 21, "all"],
    "schema": [5, "x" * (2**16 + 1)],
    "tools": [1, "yes"],
    "beyond_context": ["crop", None],
}


@pytest.mark.req("FR-012", "FR-062")
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_value_is_named(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(ConfigError, match=f"{name} ") as caught:
            SamplingParams(**{name: value})
        assert "expected" in str(caught.value)
        assert len(str(caught.value)) < 200  # however long the value is


@pytest.mark.req("FR-012", "FR-062")
@pytest.mark.parametrize("name", WRONG_IN_REQUESTS)
def test_every_wrong_value_of_a_request_is_named(name: str) -> None:
    for value in WRONG_IN_REQUESTS[name]:
        with pytest.raises(ConfigError, match=f"{name} is .*expected"):
            Request(**{"request_id": "a", "prompt_tokens": (), name: value})


@given(st.data())
@pytest.mark.req("FR-012")
def test_all_problems_are_reported_at_once(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(WRONG)), min_size=1, unique=True))
    values = {name: data.draw(st.sampled_from(WRONG[name])) for name in chosen}
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**values)
    for name in WRONG:
        assert (f"{name} " in str(caught.value)) == (name in chosen)


def test_a_schema_and_tools_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="schema and tools are both asked for"):
        Request(request_id="a", prompt_tokens=(), schema=ANY_JSON, tools=True)
    assert Request(request_id="a", prompt_tokens=(), schema=ANY_JSON).schema == "json"


def test_the_ends_of_every_range_are_inside() -> None:
    for values in (
        {"max_tokens": 1, "temperature": 0, "top_k": 1, "top_p": 1e-9, "min_p": 0},
        {"temperature": 10, "top_p": 1, "min_p": 1, "top_k": None, "seed": 2**63 - 1},
        {"presence_penalty": -2, "frequency_penalty": 2.0, "repetition_penalty": 10, "logprobs": 0},
        {"logit_bias": {0: -100, 7: 100.0}, "stop": ("x" * 256,) * 16, "logprobs": 20},
    ):
        assert dataclasses.replace(SamplingParams(), **values) == SamplingParams(**values)


def test_penalties_are_noticed() -> None:
    assert not SamplingParams(repetition_penalty=1, logit_bias={1: 1.0}).has_penalties
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert SamplingParams(**{name: 0.5}).has_penalties


@pytest.mark.req("FR-062")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_tokens": (1, 2, 300)}, "prompt token 300 at place 2 .* vocabulary of 300"),
        ({"prompt_tokens": (-1,)}, "prompt token -1 at place 0"),
        ({"prompt_tokens": (1.0,)}, "prompt token 1.0"),
        ({"prompt_tokens": (True,)}, "prompt token True"),
        ({"sampling": SamplingParams(logit_bias={300: 1.0})}, "logit_bias token 300"),
        ({"sampling": SamplingParams(stop_tokens=(2**70,))}, "stop token 1180591"),
    ],
)
def test_no_id_outside_the_vocabulary_passes(values: dict[str, Any], message: str) -> None:
    request = Request(**{"request_id": "a", "prompt_tokens": (0,), **values})
    with pytest.raises(TokenizerError, match=message):
        request.check_vocabulary(300)


def test_what_passes_the_door_is_frozen_and_travels() -> None:
    sampling = SamplingParams(logit_bias={5: 1.0}, stop=("end",))
    request = Request(request_id="a", prompt_tokens=(1, 299), sampling=sampling)
    request.check_vocabulary(300)
    event = TokenEvent(request_id="a", token=NO_TOKEN, text="", logprob=0.0, finish_reason="abort")
    for value in (request, event):
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(value) == hash(pickle.loads(pickle.dumps(value)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.request_id = "b"  # type: ignore[misc]
