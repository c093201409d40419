"""request.py: every value out of range is named, all at once."""

import dataclasses
import pickle

import pytest

from nanochat.common.errors import ConfigError
from nanochat.engine.request import NO_TOKEN, Request, SamplingParams, TokenEvent


@pytest.mark.req("FR-012")
def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(max_tokens=0, temperature=11.0, top_k=0, top_p=0.0, seed=-1)
    for name in ("max_tokens is 0", "temperature is 11.0", "top_k is 0", "top_p is 0.0", "seed is"):
        assert name in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_temperature_is_a_number_of_use(value: float) -> None:
    with pytest.raises(ConfigError, match="temperature is"):
        SamplingParams(temperature=value)
    with pytest.raises(ConfigError, match="top_p is"):
        SamplingParams(top_p=value)


def test_what_passes_the_door_is_frozen_and_travels() -> None:
    request = Request(request_id="a", prompt_tokens=(1, 2))
    event = TokenEvent(request_id="a", token=NO_TOKEN, text="", logprob=0.0, finish_reason="abort")
    for value in (request, event):
        assert pickle.loads(pickle.dumps(value)) == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.request_id = "b"  # type: ignore[misc]
