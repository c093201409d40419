"""Shares with intervals -> drawings.   in: values, intervals   out: inline SVG
who calls: report_eval.py   (imports no torch)

One row a number, all on one axis, where 0 is guessing: how far each lies from it, and how sure that
is, is seen before anything is read.  Colours are classes that report.css fills.
Read next: curves.py (curves and bars), report.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.evals.curves import nice_ticks
from nanochat.evals.intervals import Interval
from nanochat.evals.page import safe_text

__all__ = ["ShareRow", "interval_bar", "interval_chart"]

WIDTH, LEFT, RIGHT = 560.0, 196.0, 500.0  # names stand before the plot, values behind it
ROW_HEIGHT, TOP, AXIS_HEIGHT = 22.0, 30.0, 26.0
MOST_LETTERS = 26  # of a name, in the room before the plot


@dataclass(frozen=True, slots=True)
class ShareRow:
    """One number: its name, where it lies, and how sure that is."""

    name: str
    value: float
    interval: Interval
    is_composite: bool = False


def interval_chart(rows: Sequence[ShareRow], title: str, unit: str, chart_id: str) -> str:
    """The SVG of all rows, one below the other; what is not a number is left out."""
    rows = [row for row in rows if all(map(math.isfinite, (row.value, *row.interval)))]
    if not rows:
        return ""
    low = min(0.0, *(row.interval.low for row in rows))
    high = max(0.05, *(row.interval.high for row in rows))
    axis = _Axis(low, high)
    bottom = TOP + ROW_HEIGHT * len(rows)
    drawn = "".join(_row(row, axis, TOP + ROW_HEIGHT * i) for i, row in enumerate(rows))
    return (
        f'<svg class="chart shares" viewBox="0 0 {_n(WIDTH)} {_n(bottom + AXIS_HEIGHT)}" '
        f'role="img" aria-labelledby="{chart_id}-title {chart_id}-desc">'
        f'<title id="{chart_id}-title">{safe_text(title)}</title>'
        f'<desc id="{chart_id}-desc">{safe_text(_described(rows))}</desc>'
        f'<text class="heading" x="0" y="14">{safe_text(title)} '
        f'<tspan class="unit">{safe_text(unit)}</tspan></text>'
        f"{axis.drawn(bottom)}{drawn}</svg>"
    )


def interval_bar(value: float, interval: Interval, baseline: float) -> str:
    """A share of 0 to 1 as one SVG: a bar, its interval as a line, a mark for the guesser."""
    x = [_n(100 * _clipped(each)) for each in (value, *interval, baseline)]
    return (
        '<svg class="bars" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="0" width="100" height="20"/>'
        f'<rect class="before" x="0" y="4" width="{x[0]}" height="12"/>'
        f'<path class="spread" d="M{x[1]} 10H{x[2]}"/>'
        f'<path class="guesser" d="M{x[3]} 0V20"/></svg>'
    )


# -------------------------------------------------------------------------------------- pieces


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - self.low) / (self.high - self.low)

    def drawn(self, bottom: float) -> str:
        """Rules, numbers, and where guessing lies."""
        parts = []
        for tick in nice_ticks(self.low, self.high, 5):
            x = _n(self.x(tick))
            kind = "guesser" if tick == 0 else "rule"
            parts.append(f'<path class="{kind}" d="M{x} {_n(TOP - 4)}V{_n(bottom)}"/>')
            parts.append(
                f'<text class="tick" x="{x}" y="{_n(bottom + 17)}" text-anchor="middle">'
                f"{tick:g}</text>"
            )
        return "".join(parts)


def _row(row: ShareRow, axis: _Axis, top: float) -> str:
    y = top + ROW_HEIGHT / 2
    low, middle, high = (axis.x(each) for each in (row.interval.low, row.value, row.interval.high))
    kind = "composite" if row.is_composite else "task"
    name = row.name if len(row.name) <= MOST_LETTERS else f"{row.name[: MOST_LETTERS - 3]}..."
    return (
        f'<text class="name {kind}" x="{_n(LEFT - 10)}" y="{_n(y)}" dy=".35em" '
        f'text-anchor="end">{safe_text(name)}</text>'
        f'<path class="spread {kind}" d="M{_n(low)} {_n(y)}H{_n(high)}"/>'
        f'<circle class="{kind}" cx="{_n(middle)}" cy="{_n(y)}" r="3.5"/>'
        f'<text class="value {kind}" x="{_n(RIGHT + 10)}" y="{_n(y)}" dy=".35em">'
        f"{row.value:.3f}</text>"
    )


def _described(rows: Sequence[ShareRow]) -> str:
    """The drawing in words, for those who cannot see it."""
    return " ".join(
        f"{row.name}: {row.value:.3f}, from {row.interval.low:.3f} to {row.interval.high:.3f}."
        for row in rows
    )


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _n(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
