"""Who is right, in every script; test_custom.py has what a task file makes of it."""

import pytest

from nanochat.evals.marking import mark_contains, mark_exact
from nanochat.evals.task import Judge, Sample

pytestmark = pytest.mark.req("FR-044")

PARIS, TOKYO, THREE = "\u5df4\u9ece", "\u6771\u4eac", "\u4e09"
CAPITAL = "\u6cd5\u56fd\u7684\u9996\u90fd\u662f"  # the capital of France is


@pytest.mark.parametrize(
    ("mark", "gold", "outputs"),
    [
        (mark_contains, PARIS, {f"{CAPITAL}{PARIS}\u3002": 1, f"{CAPITAL}{TOKYO}": 0}),
        (mark_contains, TOKYO, {f"\u9996\u90fd\u306f{TOKYO}\u3067\u3059": 1, "\u4eac": 0}),
        (mark_contains, "\u30d1\u30ea", {"\u9996\u90fd\u306f\u30d1\u30ea\u3067\u3059": 1}),
        (mark_contains, "Paris", {f"{CAPITAL}Paris\u3002": 1, f"{CAPITAL}Parisian": 0}),
        (mark_contains, "3", {"\u67093\u4e2a": 1, "\u670913\u4e2a": 0, "\u67093x": 0}),
        (mark_contains, THREE, {f"\u6709{THREE}\u4e2a": 1, f"\u6709\u5341{THREE}\u4e2a": 0}),
        (mark_contains, "caf\u00e9", {"le caf\u00e9!": 1, "cafe": 0, "caf\u00e9s": 0}),
        (mark_contains, "\u043c\u0438", {"\u043c\u0438.": 1, "\u043c\u0438\u0440": 0}),
        (mark_contains, ".", {"": 0, "it is .": 1, "none": 0}),
        (mark_contains, "***", {"": 0, "three: ***": 1, "**": 0}),
        (mark_exact, PARIS, {f"{PARIS}\u3002": 1, f"\u300c{PARIS}\u300d": 1, CAPITAL: 0}),
        (mark_exact, "Paris", {"\u201cParis\u201d.": 1, "": 0}),
        (mark_exact, ".", {"": 0, " . ": 1, "!": 0}),
        (mark_exact, "_", {"": 0, "_": 1, "a": 0}),
    ],
)  # fmt: skip
def test_scripts_without_spaces_and_answers_of_marks_alone(
    mark: Judge, gold: str, outputs: dict[str, int]
) -> None:
    for output, score in outputs.items():
        assert mark(Sample(sample_id="1", prompt="?", gold=gold), output).score == score, output
