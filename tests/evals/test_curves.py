"""Drawings: every coordinate is a number on the paper, no peak is lost, ticks are round."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.evals import curves
from nanochat.evals.curves import Curve, bars, curve_of, loss_chart, nice_ticks

ANY_FLOAT = st.one_of(st.floats(), st.floats(0, 20), st.none())
ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": st.one_of(st.integers(0, 5000), st.floats())},
        optional={"loss": ANY_FLOAT, "val_bpb": ANY_FLOAT},
    ),
    max_size=30,
)


def polylines(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of every line of a kind."""
    return [
        [tuple(map(float, pair.split(","))) for pair in points.split()]  # type: ignore[misc]
        for points in re.findall(rf'<polyline class="{kind}" points="([^"]*)"', svg)
    ]


def rows_of(losses: list[float], **val_bpb: float) -> list[dict[str, Any]]:
    """Rows from step 1; s3=0.5 is a validation after step 3."""
    rows: list[dict[str, Any]] = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    for name, value in val_bpb.items():
        rows[int(name[1:]) - 1]["val_bpb"] = value
    return rows


@given(rows=ROWS, before=ANY_FLOAT)
@pytest.mark.req("FR-043")
def test_every_coordinate_is_a_number_on_the_paper(rows: list[Any], before: float | None) -> None:
    curve = curve_of(rows, before)
    svg = loss_chart(curve, "x", "c")
    assert bool(svg) == bool(curve.losses or curve.validation)
    assert not re.search(r"\b(nan|inf)\b", svg)
    for x, y in (
        point
        for kind in ("raw", "smooth", "validation")
        for line in polylines(svg, kind)
        for point in line
    ):
        assert curves.LEFT <= x <= curves.RIGHT
        assert curves.LOSS_TOP <= y <= 400
    height = float(re.search(r'viewBox="0 0 460 ([0-9.]+)"', svg)[1]) if svg else 0  # type: ignore[index]
    for value in re.findall(r' (?:y|cy)="([^"]+)"', svg):
        assert 0 <= float(value) <= height


def test_lower_losses_are_drawn_lower_and_later_ones_to_the_right() -> None:
    svg = loss_chart(curve_of(rows_of([4.0, 2.0, 1.0], s3=0.9), 1.7), "x", "c")
    [smooth], [validation] = polylines(svg, "smooth"), polylines(svg, "validation")
    assert [x for x, _ in smooth] == sorted(x for x, _ in smooth)
    assert [y for _, y in smooth] == sorted(y for _, y in smooth)
    assert validation[0][0] == curves.LEFT and validation[1][0] == curves.RIGHT == smooth[-1][0]
    assert validation[0][1] > smooth[-1][1]  # a panel of its own, below
    assert polylines(svg, "raw") == []  # three steps need no smoothing


def test_a_long_curve_is_smoothed_and_thinned_but_keeps_its_peaks() -> None:
    losses = [2.0 + (0.1 if step % 2 else -0.1) for step in range(10_000)]
    losses[5000] = 9.0
    curve = curve_of(rows_of(losses))
    assert curve.reach == 250
    assert max(abs(loss - 2.0) for _, loss in curve.smooth[300:4700]) < 0.001
    assert curve.smooth[0] == (1.0, losses[0])  # narrow where the curve is steep
    svg = loss_chart(curve, "x", "c")
    [raw], [smooth] = polylines(svg, "raw"), polylines(svg, "smooth")
    assert len(raw) <= curves.MOST_POINTS + 3 and len(smooth) <= curves.MOST_POINTS + 3
    highest = min(raw, key=lambda point: point[1])
    assert highest[0] == pytest.approx((curves.LEFT + curves.RIGHT) / 2, abs=1)
    assert min(y for _, y in smooth) > highest[1] + 50


def test_one_point_is_a_dot_in_the_middle() -> None:
    svg = loss_chart(curve_of([{"step": 1, "loss": 6.9}]), "x", "c")
    y = curves.LOSS_TOP + curves.LOSS_HEIGHT / 2
    assert f'<circle class="smooth-dot" cx="412" cy="{y:g}" r="3.5"/>' in svg
    assert ">6.900</text>" in svg
    assert "Validation" not in svg


def test_values_stand_where_the_line_is_not() -> None:
    curve = curve_of([{"step": i, "val_bpb": v} for i, v in enumerate([1.0, 2.0, 1.0, 1.5, 3.0])])
    svg = loss_chart(curve, "x", "c")
    dots = re.findall(r'class="validation-dot" cx="([^"]+)" cy="([^"]+)"', svg)
    labels = re.findall(
        r'validation-value" x="([^"]+)" y="([^"]+)" (?:text-anchor|dy)="([^"]+)">([^<]+)', svg
    )
    sides = [
        (text, anchor, float(y) > float(dot_y))
        for (_, y, anchor, text), (_, dot_y) in zip(labels, dots, strict=True)
    ]
    assert sides == [
        ("1.000", "start", True),  # goes up: below
        ("2.000", "middle", False),  # a peak: above
        ("1.000", "middle", True),  # a valley: below
        ("1.500", "start", True),
        ("3.000", ".35em", False),  # the last: behind
    ]
    many = curve_of([{"step": i, "val_bpb": float(i)} for i in range(9)])
    assert re.findall(r'validation-value"[^>]*>([^<]+)', loss_chart(many, "x", "c")) == [
        "0.000",
        "8.000",
    ]


def test_what_is_measured_before_takes_the_place_of_step_0() -> None:
    rows = [{"step": 0, "val_bpb": 3.0}, {"step": 2, "val_bpb": 1.0}]
    assert curve_of(rows).validation == ((0.0, 3.0), (2.0, 1.0))
    assert curve_of(rows, 2.0).validation == ((0.0, 2.0), (2.0, 1.0))
    assert curve_of([{"loss": 1.0}, {"step": 1, "loss": math.nan}]) == Curve((), (), 0, ())
    assert Curve((), (), 0, ()).last_step == 1


@pytest.mark.req("FR-043")
def test_a_chart_says_in_words_what_it_shows() -> None:
    svg = loss_chart(curve_of(rows_of([4.0, 1.0], s2=0.5)), "<b>&'\"", "c")
    assert '<title id="c-title">Loss curve of &lt;b&gt;&amp;&#x27;&quot;</title>' in svg
    assert (
        "Training loss over 2 steps: 4.000 nats per token at the start, 1.000 at the end. "
        "Validation, bits per byte: 0.5000 at step 2.</desc>" in svg
    )
    assert 'role="img" aria-labelledby="c-title c-desc"' in svg


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-3, 1e9), count=st.integers(1, 12))
def test_ticks_are_round_inside_and_about_as_many_as_asked(
    low: float, span: float, count: int
) -> None:
    high = low + span
    if not low < high:
        return
    ticks = nice_ticks(low, high, count)
    assert len(ticks) <= count + 2
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    for first, second in zip(ticks, ticks[1:], strict=False):
        assert f"{second - first:.2e}"[0] in "125"


def test_ticks_one_would_choose() -> None:
    assert nice_ticks(0, 976, 5) == [0, 200, 400, 600, 800]
    assert nice_ticks(0.56, 0.61, 4) == [0.56, 0.58, 0.6]
    assert nice_ticks(0, 3, 5) == [0, 1, 2, 3]
    assert nice_ticks(0, 1, 5, is_whole=True) == [0, 1]
    for low, high in ((1, 1), (2, 1), (0, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="expected finite numbers"):
            nice_ticks(low, high, 4)


def test_bars_are_as_long_as_their_shares() -> None:
    svg = bars(0.25, 0.875, 0.1)
    assert re.findall(r'class="(before|after)" .*?width="([^"]+)"', svg) == [
        ("before", "25"),
        ("after", "87.5"),
    ]
    assert 'd="M10 0V20"' in svg
    assert 'class="before"' not in bars(None, 1.0, 0.0)
    assert 'width="100"' in bars(None, 7.0, 0.0) and 'width="0"' in bars(None, math.nan, 0.0)
