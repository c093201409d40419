"""Numbers -> drawings.   in: rows of metrics.jsonl, shares   out: inline SVG
who calls: report.py   (imports no torch)

The loss of a stage lies above its validation, one x axis under both: each keeps its own unit and
scale.  Text is sized for a drawing of 330 to 520 pixels, a phone's width or half a desk's; colours
are classes that report.css fills, for light and dark.
Read next: report.css, tests/evals/test_curves.py (what is promised of coordinates).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "bars", "curve_of", "loss_chart", "nice_ticks"]

WIDTH, LEFT, RIGHT = 460.0, 48.0, 412.0  # right of the plot stand the last values
LOSS_TOP, LOSS_HEIGHT = 34.0, 176.0
VALIDATION_GAP, VALIDATION_HEIGHT = 54.0, 100.0
AXIS_HEIGHT = 26.0
SMOOTH_SHARE = 40  # the mean reaches a fortieth of the run to either side
MOST_POINTS = 360  # about one a pixel; of more, the lowest and highest of each stretch are drawn
MOST_VALUE = 1e12  # what is larger is as good as infinite, and its squares may be
MOST_LABELS = 5  # validation values written out; of more, the first and the last


@dataclass(frozen=True, slots=True)
class Curve:
    """What a stage measured, ready to be drawn; only finite numbers."""

    losses: tuple[tuple[float, float], ...]
    """(step, loss), nats per token."""
    smooth: tuple[tuple[float, float], ...]
    """The losses, each the mean of its neighbours `reach` steps to either side."""
    reach: int
    validation: tuple[tuple[float, float], ...]
    """(step, bits per byte); step 0 is before the stage."""

    @property
    def last_step(self) -> float:
        """Where the x axis ends, at least 1."""
        return max([1.0, *(step for step, _ in (*self.losses, *self.validation))])


def curve_of(rows: Sequence[Mapping[str, float]], val_bpb_before: float | None = None) -> Curve:
    """The curve of the rows of metrics.jsonl; what is absent or not a number is left out."""
    losses = _points(rows, "loss")
    validation = _points(rows, "val_bpb")
    if val_bpb_before is not None and _is_drawable(0.0, val_bpb_before):
        validation = [(0.0, float(val_bpb_before)), *(point for point in validation if point[0])]
    reach = len(losses) // SMOOTH_SHARE
    return Curve(tuple(losses), tuple(_smoothed(losses, reach)), reach, tuple(validation))


def loss_chart(curve: Curve, name: str, chart_id: str) -> str:
    """The SVG of one stage: loss, and validation where there is any; empty without numbers."""
    if not curve.losses and not curve.validation:
        return ""
    top, panels = LOSS_TOP, []
    if curve.losses:
        panels.append(_loss_panel(curve, top))
        top += LOSS_HEIGHT + VALIDATION_GAP
    if curve.validation:
        panels.append(_validation_panel(curve, top))
        top += VALIDATION_HEIGHT + VALIDATION_GAP
    bottom = top - VALIDATION_GAP
    height = bottom + AXIS_HEIGHT
    return (
        f'<svg class="chart" viewBox="0 0 {_n(WIDTH)} {_n(height)}" role="img" '
        f'aria-labelledby="{chart_id}-title {chart_id}-desc">'
        f'<title id="{chart_id}-title">Loss curve of {escape(name)}</title>'
        f'<desc id="{chart_id}-desc">{escape(_described(curve))}</desc>'
        f"{''.join(panels)}{_x_axis(curve.last_step, bottom)}</svg>"
    )


def bars(before: float | None, after: float, guesser: float) -> str:
    """Shares of 0 to 1 as one SVG: a bar each for before and after, a mark for the guesser."""
    shares = [("before", before, 2.0, 6.0), ("after", after, 8.0, 10.0)]
    if before is None:
        shares = [("after", after, 4.0, 12.0)]
    drawn = "".join(
        f'<rect class="{kind}" x="0" y="{_n(y)}" width="{_n(100 * _share(share))}" '
        f'height="{_n(height)}"/>'
        for kind, share, y, height in shares
        if share is not None
    )
    x = _n(100 * _share(guesser))
    return (
        '<svg class="bars" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="0" width="100" height="20"/>'
        f'{drawn}<path class="guesser" d="M{x} 0V20"/></svg>'
    )


def nice_ticks(low: float, high: float, count: int, is_whole: bool = False) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from low to high.

    `is_whole`: whole numbers only.
    Raises: ValueError unless low < high, both finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"no ticks between {low} and {high}: expected finite numbers, low first")
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    if is_whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(index * step, digits + 1) for index in range(first, last + 1)]


# ------------------------------------------------------------------------------------ numbers


def _points(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    points = [
        (float(row["step"]), float(row[name]))
        for row in rows
        if row.get(name) is not None and row.get("step") is not None
    ]
    return [point for point in points if _is_drawable(*point)]


def _is_drawable(step: float, value: float) -> bool:
    return 0 <= step <= MOST_VALUE and abs(value) <= MOST_VALUE  # comparisons with NaN are false


def _smoothed(points: list[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Means of neighbours; narrow at the steep beginning, which a wide one would flatten."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for index, (step, _) in enumerate(points):
        left = min(reach, index)
        right = min(left, len(points) - 1 - index)
        mean = (sums[index + right + 1] - sums[index - left]) / (left + right + 1)
        result.append((step, mean))
    return result


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """As many points as a drawing can show; no peak is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = [points[0]]
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept.extend(sorted(extremes))
    return list(dict.fromkeys([*kept, points[-1]]))


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _described(curve: Curve) -> str:
    """The drawing in words, for those who cannot see it."""
    sentences = []
    if curve.losses:
        sentences.append(
            f"Training loss over {len(curve.losses):,} steps: {curve.smooth[0][1]:.3f} nats per "
            f"token at the start, {curve.smooth[-1][1]:.3f} at the end."
        )
    if curve.validation:
        values = ", ".join(f"{value:.4f} at step {step:,.0f}" for step, value in curve.validation)
        sentences.append(f"Validation, bits per byte: {values}.")
    return " ".join(sentences)


# ------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where numbers lie on the paper."""

    last_step: float
    low: float
    high: float
    top: float
    height: float

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        return _x(point[0], self.last_step), self.y(point[1])

    def y(self, value: float) -> float:
        return self.top + self.height * (self.high - value) / (self.high - self.low)

    def frame(self, title: str, unit: str, num_ticks: int) -> str:
        """Heading, rules and numbers of the y axis."""
        ticks = nice_ticks(self.low, self.high, num_ticks)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else ticks[0] if ticks else 1.0
        digits = max(0, -math.floor(math.log10(abs(step) or 1.0) + 1e-9))
        parts = [
            f'<text class="heading" x="0" y="{_n(self.top - 17)}">{title} '
            f'<tspan class="unit">{unit}</tspan></text>'
        ]
        for tick in ticks:
            y = _n(self.y(tick))
            parts.append(f'<path class="rule" d="M{_n(LEFT)} {y}H{_n(RIGHT)}"/>')
            parts.append(
                f'<text class="tick" x="{_n(LEFT - 8)}" y="{y}" dy=".35em" '
                f'text-anchor="end">{tick:,.{digits}f}</text>'
            )
        return "".join(parts)


def _panel(
    values: Sequence[float], last_step: float, top: float, height: float, room: float
) -> _Panel:
    """A panel whose values keep off its edges by `room` of their range.

    The range is at least a hundredth of the values: less is not worth a magnifying glass, and a
    single value lies in the middle.
    """
    middle = (max(values) + min(values)) / 2
    span = max(max(values) - min(values), 0.01 * abs(middle), 1e-3) * (1 + 2 * room)
    return _Panel(last_step, middle - span / 2, middle + span / 2, top, height)


def _loss_panel(curve: Curve, top: float) -> str:
    losses = [loss for _, loss in curve.losses]
    panel = _panel(losses, curve.last_step, top, LOSS_HEIGHT, 0.04)
    parts = [panel.frame("Training loss", "nats per token", 5)]
    if curve.reach:
        parts.append(_line("raw", panel, _thinned(curve.losses)))
    parts.append(_line("smooth", panel, _thinned(curve.smooth)))
    x, y = panel.at(curve.smooth[-1])
    parts.append(f'<circle class="smooth-dot" cx="{_n(x)}" cy="{_n(y)}" r="3.5"/>')
    parts.append(
        f'<text class="value smooth-value" x="{_n(x + 8)}" y="{_n(y)}" dy=".35em">'
        f"{curve.smooth[-1][1]:.3f}</text>"
    )
    return "".join(parts)


def _validation_panel(curve: Curve, top: float) -> str:
    values = [value for _, value in curve.validation]
    panel = _panel(values, curve.last_step, top, VALIDATION_HEIGHT, 0.34)
    parts = [panel.frame("Validation", "bits per byte", 4)]
    if len(curve.validation) > 1:
        parts.append(_line("validation", panel, curve.validation))
    last = len(curve.validation) - 1
    for index, point in enumerate(curve.validation):
        x, y = panel.at(point)
        parts.append(f'<circle class="validation-dot" cx="{_n(x)}" cy="{_n(y)}" r="3.5"/>')
        if index in (0, last) or last < MOST_LABELS:
            place = _beside_the_line(values, index, x, y)
            parts.append(f'<text class="value validation-value" {place}>{point[1]:.3f}</text>')
    return "".join(parts)


def _beside_the_line(values: Sequence[float], index: int, x: float, y: float) -> str:
    """Where a point's value stands free: behind the last, else on the side the line leaves open."""
    if index == len(values) - 1:
        return f'x="{_n(x + 8)}" y="{_n(y)}" dy=".35em"'
    comes_from = values[index - 1] if index else None
    is_rising = values[index + 1] > values[index]
    is_turn = comes_from is not None and (comes_from > values[index]) == is_rising
    anchor = "middle" if is_turn else "start"
    return f'x="{_n(x)}" y="{_n(y + 16 if is_rising else y - 9)}" text-anchor="{anchor}"'


def _x_axis(last_step: float, bottom: float) -> str:
    parts = [f'<path class="axis" d="M{_n(LEFT)} {_n(bottom)}H{_n(RIGHT)}"/>']
    for tick in nice_ticks(0.0, last_step, 5, is_whole=True):
        x = _n(_x(tick, last_step))
        parts.append(f'<path class="axis" d="M{x} {_n(bottom)}v5"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{_n(bottom + 19)}" text-anchor="middle">'
            f"{tick:,.0f}</text>"
        )
    parts.append(
        f'<text class="tick" x="{_n(LEFT - 16)}" y="{_n(bottom + 19)}" '
        'text-anchor="end">step</text>'
    )
    return "".join(parts)


def _line(kind: str, panel: _Panel, points: Sequence[tuple[float, float]]) -> str:
    places = " ".join(f"{_n(x)},{_n(y)}" for x, y in map(panel.at, points))
    return f'<polyline class="{kind}" points="{places}"/>'


def _x(step: float, last_step: float) -> float:
    return LEFT + (RIGHT - LEFT) * step / last_step


def _n(value: float) -> str:
    """A coordinate: two digits are finer than any screen."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
