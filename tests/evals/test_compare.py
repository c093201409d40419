"""Two models on the same questions: what differs is found, what does not is left alone, and what
was not asked alike is refused by name."""

import json
import random
from dataclasses import replace

import pytest

from nanochat.common.errors import EvalError
from nanochat.evals.compare import Comparison, compare, differing_keys
from nanochat.evals.intervals import holm, mcnemar
from nanochat.evals.results import EvalResult
from tests.evals.makers import make_bits, make_composite, make_result, make_task

pytestmark = pytest.mark.req("US-4", "FR-043")

RIGHT = [1.0] * 60 + [0.0] * 40
BETTER = [1.0] * 60 + [1.0] * 20 + [0.0] * 20
SLIGHTLY = [0.0] + [1.0] * 61 + [0.0] * 38


def test_by_hand() -> None:
    [found] = compare(
        [make_result("a", {"x": RIGHT, "y": RIGHT}), make_result("b", {"x": BETTER, "y": SLIGHTLY})]
    )
    x, y = found.tasks
    assert (x.name, x.test, x.count) == ("x", "McNemar", 100)
    assert (x.first, x.second, x.difference) == pytest.approx((0.6, 0.8, 0.2))
    assert (x.num_only_first, x.num_only_second) == (0, 20)
    assert x.p_value == mcnemar(0, 20) == 2 / 2**20
    assert (y.num_only_first, y.num_only_second) == (1, 2) and y.p_value == 1.0
    assert [each.corrected for each in found.tasks] == holm([x.p_value, y.p_value])
    assert (x.verdict(0.05), y.verdict(0.05)) == ("better", "")
    assert x.interval.low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.01)
    [composite] = found.composites
    assert composite.name == "core_21_no_coqa_v1" and composite.count == 2
    assert composite.difference == pytest.approx((0.2 + 0.01) / 0.75 / 2)
    assert composite.second == pytest.approx(composite.first + composite.difference)
    assert composite.verdict(0.05) == "better" and found.worse(0.05) == []


def test_the_other_way_round_is_worse() -> None:
    results = [make_result("b", {"x": BETTER}), make_result("a", {"x": RIGHT})]
    [found] = compare(results)
    assert [each.name for each in found.worse(0.05)] == ["core_21_no_coqa_v1", "x"]
    assert found.worse(1e-7) == []  # the bootstrap's smallest p-value is 1e-4
    shown = json.loads(json.dumps(found.to_json(0.05), allow_nan=False))
    assert shown["tasks"]["x"]["verdict"] == "worse"
    assert shown["tasks"]["x"]["only_first"] == 20
    assert shown["worse"] == ["core_21_no_coqa_v1", "x"]


def test_many_tasks_are_corrected_together_and_composites_apart() -> None:
    first = {f"t{index}": RIGHT for index in range(22)}
    second = {**first, "t3": [0.0] * 7 + RIGHT[7:]}  # seven lost: p = 0.0156 alone
    [found] = compare([make_result("a", first), make_result("b", second)])
    task = found.tasks[3]
    assert task.p_value == 2 / 2**7 and task.corrected == pytest.approx(22 * 2 / 2**7)
    assert task.verdict(0.05) == ""
    assert found.composites[0].corrected == found.composites[0].p_value
    three = compare([make_result(name, {"x": RIGHT}) for name in "abc"])
    assert [(one.first, one.second) for one in three] == [("a", "b"), ("a", "c")]


def test_equally_good_models_are_rarely_told_apart() -> None:
    """50 pairs of ten tasks each: at 5% for all ten together, two or three pairs or fewer."""
    rng = random.Random(0)
    found = 0
    for _ in range(50):
        pair = [
            make_result(
                name,
                {f"t{i}": [float(rng.random() < 0.5) for _ in range(40)] for i in range(10)},
                composite=None,
            )
            for name in "ab"
        ]
        [comparison] = compare(pair)
        found += any(each.verdict(0.05) for each in comparison.tasks)
    assert found <= 8


def test_shares_and_bits_are_resampled() -> None:
    halves = [0.5, 1.0, 0.0, 0.25] * 20
    less = [score * 0.5 for score in halves]
    [found] = compare([make_result("a", {"x": halves}), make_result("b", {"x": less})])
    [task] = found.tasks
    assert task.test == "paired bootstrap and sign flips" and task.num_only_first is None
    assert task.verdict(0.05) == "worse"

    rng = random.Random(1)
    bits = [100.0 + rng.random() for _ in range(50)]
    first = EvalResult(model="a", tasks={"bpb": make_bits("bpb", bits)})
    second = EvalResult(model="b", tasks={"bpb": make_bits("bpb", [each - 2 for each in bits])})
    [found] = compare([first, second])
    assert found.tasks[0].first == first.tasks["bpb"].bits_per_byte
    assert found.tasks[0].difference == pytest.approx(-0.02)
    assert found.tasks[0].verdict(0.05) == "better"  # fewer bits are better


def test_what_differs_in_one_question_or_document_is_not_worse() -> None:
    first = make_result("a", {f"t{index}": [1.0] for index in range(22)})
    second = make_result("b", {f"t{index}": [float(index > 0)] for index in range(22)})
    [found] = compare([first, second])
    assert found.composites[0].difference < 0 and found.worse(0.05) == []
    pair = [make_result("a", {"x": [0.5]}), make_result("b", {"x": [0.375]})]
    assert compare(pair)[0].worse(0.05) == []
    one, other = (
        EvalResult(model=name, tasks={"bpb": make_bits("bpb", [bits])})
        for name, bits in (("a", 100.0), ("b", 100.00002))
    )
    [found] = compare([one, other])
    assert found.tasks[0].difference > 0 and found.worse(0.05) == []


def changed(result: EvalResult, **values: object) -> EvalResult:
    """With another field of its one task."""
    return replace(result, tasks={"x": replace(result.tasks["x"], **values)})  # type: ignore[arg-type]


def reworded(result: EvalResult, count: int) -> EvalResult:
    """With the same numbers, and no hashes, on data that somebody has edited."""
    records = result.tasks["x"].records
    edited = [replace(each, sample=replace(each.sample, prompt="new")) for each in records[:count]]
    return changed(result, records=(*edited, *records[count:]), data_sha256={})


BASE = make_result("a", {"x": RIGHT})


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (replace(BASE, mode="nanochat"), "mode default against nanochat"),
        (make_result("b", {"x": RIGHT}, limit=30), "limit None against 30"),
        (make_result("b", {"x": RIGHT}, num_samples=4), "num_samples None against 4"),
        (changed(BASE, version="2"), "x.version 1 against 2"),
        (changed(BASE, baseline=0.5), "x.baseline 0.25 against 0.5"),
        (changed(BASE, data_sha256={"x.jsonl": "c" * 64}), "x.data x.jsonl abababababab against c"),
        (make_result("b", {"x": RIGHT[:90]}), "x.samples 100 against 90, 90 of them the same"),
        (make_result("b", {"x": RIGHT, "y": RIGHT}), "tasks only b has: y"),
        (reworded(BASE, 3), "x.samples: 3 of 100 ask or expect something else"),
    ],
)
def test_what_was_not_asked_alike_is_refused_by_name(other: EvalResult, key: str) -> None:
    other = replace(other, model="b")
    assert any(key in each for each in differing_keys(BASE, other))
    with pytest.raises(EvalError, match="a and b were not asked the same: ") as caught:
        compare([BASE, other])
    assert key in str(caught.value) and "--allow-changed" in str(caught.value)
    [found] = compare([BASE, other], allow_changed=True)
    assert any(key in each for each in found.changed)
    assert [each.name for each in found.tasks] == ["x"]


def test_what_belongs_to_the_model_may_differ() -> None:
    first = make_result("a", {"x": RIGHT}, dtype="float32", model_sha256="1")
    second = make_result("b", {"x": RIGHT}, dtype="int8", model_sha256="2")
    assert differing_keys(first, second) == []


def test_a_task_that_failed_does_not_pass_for_one_that_held() -> None:
    failed = replace(make_task("x", ()), error="x.jsonl is missing")
    second = replace(make_result("b", {"y": RIGHT}), tasks={"x": failed, **_tasks("y")})
    first = make_result("a", {"x": RIGHT, "y": RIGHT})
    with pytest.raises(EvalError, match="tasks only a has: x"):
        compare([first, second])
    [found] = compare([first, second], tasks=["y*"])
    assert [each.name for each in found.tasks] == ["y"] and found.composites == ()


def _tasks(label: str) -> dict[str, object]:
    return {label: make_task(label, RIGHT)}


def test_a_composite_is_compared_only_where_it_is_the_same() -> None:
    first, second = make_result("a", {"x": RIGHT}), make_result("b", {"x": BETTER})
    other = make_composite("core_21_no_coqa_v1", {"x": make_task("x", BETTER, 0.5)})
    second = replace(second, composites={other.name: other})
    [found] = compare([first, second])
    assert found.composites == () and len(found.tasks) == 1


def test_too_few_and_nothing_shared() -> None:
    with pytest.raises(EvalError, match="at least two"):
        compare([BASE])
    with pytest.raises(EvalError, match="share no question"):
        compare([BASE, make_result("b", {"y": RIGHT})], allow_changed=True)
    long = make_result("b", {"x": RIGHT}, **{f"key_{index}": 1 for index in range(12)})
    with pytest.raises(EvalError, match="and 4 more"):
        compare([BASE, long])
    assert isinstance(compare([BASE, long], allow_changed=True)[0], Comparison)
