"""The OpenAPI document is true: what it allows and what it forbids are answered as it says, and
nothing is a 500."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, not_a_server_error
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)

from nanochat.server.app import ServedModel, create_app
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT

pytestmark = [pytest.mark.req("FR-080"), pytest.mark.req("FR-083"), pytest.mark.req("SC-015")]

# What no JSON schema of ours says: fields that belong together, and what a model cannot do.
REFUSALS = {
    ("context_length_exceeded", "messages"),
    ("context_length_exceeded", "prompt"),
    ("invalid_value", "continue_final_message"),
    ("invalid_value", "logit_bias"),
    ("invalid_value", "messages"),
    ("invalid_value", "n"),
    ("invalid_value", "prompt"),
    ("invalid_value", "stream_options"),
    ("invalid_value", "tool_choice"),
    ("invalid_value", "top_logprobs"),
    ("unsupported_value", "best_of"),
    ("unsupported_value", "response_format"),
}
SHARES = {
    f"POST {CHAT}": 15,
    "POST /v1/completions": 15,
    "POST /chat/completions": 8,
    "POST /tokenize": 6,
    "POST /detokenize": 4,
}
FORBIDDEN_HAVE = ("GET", "DELETE")  # no body, so nothing in it can be wrong


def talk_to(app: FastAPI, num_cases: int, of: Callable[[str], bool]) -> Counter[int]:
    """As many cases, half of them valid; the statuses they got.

    Raises: the failure of the first that is not as the document says.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if not of(operation.label):
            continue
        share = num_cases * SHARES.get(operation.label, 1) // 100
        is_bodiless = operation.method.upper() in FORBIDDEN_HAVE
        for mode in [GenerationMode.POSITIVE, GenerationMode.NEGATIVE][: 2 - is_bodiless]:
            examples = settings(
                max_examples=max(1, share),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            is_valid = mode is GenerationMode.POSITIVE
            cases = operation.as_strategy(generation_mode=mode)
            seed(0)(examples(given(case=cases)(_checking(statuses, is_valid))))()
    return statuses


def _checking(statuses: Counter[int], is_valid: bool) -> Callable[[Any], None]:
    def check(case: Any) -> None:
        _check(case, statuses, is_valid)

    return check


def _check(case: Any, statuses: Counter[int], is_valid: bool) -> None:
    body = case.body
    if is_valid and isinstance(body, dict) and body.get("messages"):
        # Most would end at the order of roles; valid ones remain valid.
        user = {"role": "user", "content": "Hi"}
        body["messages"] = [user, *body["messages"], user]
    response = case.call(headers={"Host": "localhost"})
    statuses[response.status_code] += 1
    not_meant = [positive_data_acceptance]
    if response.status_code == 413:  # a body over 1 MB is refused too; its own list lacks it
        not_meant.append(negative_data_rejection)
    case.validate_response(response, excluded_checks=not_meant)
    if is_valid and response.status_code == 400:
        error = response.json()["error"]
        assert (error["code"], error["param"]) in REFUSALS, error
    if response.status_code >= 400 and case.method != "HEAD":
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert len(response.content) < 4096


# Apart, so that two workers have something to do.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_chat", [True, False])
def test_the_document_is_true(served: ServedModel, is_chat: bool) -> None:
    assert not_a_server_error in CHECKS.get_all()
    app = create_app(FakeEngine(), served)
    statuses = talk_to(
        app, 600 if is_chat else 500, lambda label: (label == f"POST {CHAT}") == is_chat
    )
    assert set(statuses) <= {200, 400, 404, 413}
    assert statuses.total() >= (180 if is_chat else 330)  # more than 500 together
    assert statuses[200] >= 40 and statuses[400] >= 75


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_document_is_true_in_5000_cases(served: ServedModel) -> None:
    statuses = talk_to(create_app(FakeEngine(), served), 5000, lambda label: True)
    assert statuses.total() >= 4900
    assert set(statuses) <= {200, 400, 404, 413}
