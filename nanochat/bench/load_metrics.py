"""Answers -> the numbers of a load.   in: Answer, the span that counts   out: one row, a table
who calls: load.py, cli/bench_serve.py

vLLM's definitions, of requests that were sent within the span:

    TTFT   first frame with text - send          ITL   gaps between successive frames with text
    TPOT   (E2EL - TTFT) / (output tokens - 1)   E2EL  last frame of the answer - send
    goodput   requests a second that keep every limit of --slo

Rates are of the span alone: an answer's tokens, which `usage` counts, are spread over its frames,
and those within the span are counted.  So neither beginning nor end, where fewer users are at work,
enters a rate.
Source: vllm/benchmarks/serve.py of vllm-project/vllm; percentiles are interpolated linearly.
Read next: load.py (who makes answers).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nanochat.bench.load_client import Answer
from nanochat.common.errors import ConfigError

__all__ = ["Slo", "Span", "measure", "percentile", "table"]

MAX_ERRORS = 5  # kinds that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What of a load counts.   Units: seconds of perf_counter."""

    start_s: float
    stop_s: float
    cpu_s: float = 0.0
    """Of the generator, within it."""
    num_cores: int = 1

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.stop_s - self.start_s

    def holds(self, time_s: float) -> bool:
        """Whether a moment lies in it."""
        return self.start_s <= time_s < self.stop_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """The longest that is good enough; None: any.   Units: seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """From vLLM's form in milliseconds: "ttft:200 tpot:50 e2el:5000", any of them.

        Raises: ConfigError for another name or no number.
        """
        limits: dict[str, float] = {}
        for part in text.replace(",", " ").split():
            name, _, value = part.partition(":")
            if name not in ("ttft", "tpot", "e2el") or not _is_positive(value):
                raise ConfigError(
                    f"slo has {part!r}, expected ttft, tpot or e2el with milliseconds, such as "
                    "ttft:200"
                )
            limits[f"{name}_s"] = float(value) / 1000
        return cls(**limits)

    def is_kept(self, answer: Answer) -> bool:
        """Whether a successful answer was good enough."""
        pairs = (
            (self.ttft_s, _ttft_s(answer)),
            (self.tpot_s, _tpot_s(answer)),
            (self.e2el_s, answer.end_s - answer.sent_s),
        )
        return all(limit is None or value is None or value <= limit for limit, value in pairs)


def measure(
    answers: Sequence[Answer],
    span: Span,
    *,
    num_users: int | None = None,
    slo: Slo | None = None,
    stall_s: float = 2.0,
) -> dict[str, Any]:
    """The row of one load; what nothing was measured of is None.

    Units: milliseconds where a name ends so.  `fairness` is the slowest user's tokens over the
    mean; `longest_gap_s` is the longest silence within an answer, and `num_stalls` counts those
    above `stall_s`.
    """
    sent = [answer for answer in answers if span.holds(answer.sent_s)]
    good = [answer for answer in sent if answer.is_success]
    ended = [answer for answer in answers if answer.is_success and span.holds(answer.end_s)]
    gaps_s = [gap for answer in sent for gap in _gaps_s(answer)]
    tokens = _tokens_by_user(answers, span)
    first_ms = [1000 * value for answer in good if (value := _ttft_s(answer)) is not None]
    each_ms = [1000 * value for answer in good if (value := _tpot_s(answer)) is not None]
    return {
        **_counts(sent),
        "seconds": span.seconds,
        "prompt_tokens": sum(answer.prompt_tokens for answer in good),
        "output_tokens": sum(answer.output_tokens for answer in good),
        "output_tokens_per_s": sum(tokens.values()) / span.seconds,
        "requests_per_s": len(ended) / span.seconds,
        "goodput_per_s": None
        if slo is None
        else sum(slo.is_kept(answer) for answer in ended) / span.seconds,
        "ttft_ms": _spread(first_ms),
        "tpot_ms": _spread(each_ms),
        "itl_ms": _spread([1000 * gap for gap in gaps_s]),
        "e2el_ms": _spread([1000 * (answer.end_s - answer.sent_s) for answer in good]),
        **_fairness(tokens, num_users, span),
        "longest_gap_s": max(gaps_s, default=None),
        "num_stalls": sum(gap > stall_s for gap in gaps_s),
        "stall_s": stall_s,
        "generator_cores": span.cpu_s / span.seconds,
        "generator_cpu_share": span.cpu_s / span.seconds / span.num_cores,
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, between neighbours by a straight line."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _counts(sent: Sequence[Answer]) -> dict[str, Any]:
    failed = [answer for answer in sent if not answer.is_success]
    num_refused = sum(answer.status == 429 for answer in failed)
    num_5xx = sum(answer.status >= 500 for answer in failed)
    reasons = Counter(f"{answer.status}: {answer.error}" for answer in failed)
    return {
        "num_requests": len(sent),
        "num_success": len(sent) - len(failed),
        "num_429": num_refused,
        "num_5xx": num_5xx,
        "num_other_failures": len(failed) - num_refused - num_5xx,
        "errors": dict(reasons.most_common(MAX_ERRORS)),
        "num_stopped": sum(answer.finish_reason == "stop" for answer in sent),
    }


def _fairness(
    tokens: Mapping[int, float], num_users: int | None, span: Span
) -> dict[str, float | None]:
    if not num_users:
        return dict.fromkeys(("user_tokens_per_s", "slowest_user_tokens_per_s", "fairness"))
    mean = sum(tokens.values()) / num_users
    slowest = min(tokens.get(user, 0.0) for user in range(num_users))
    return {
        "user_tokens_per_s": mean / span.seconds,
        "slowest_user_tokens_per_s": slowest / span.seconds,
        "fairness": slowest / mean if mean else None,
    }


def _tokens_by_user(answers: Sequence[Answer], span: Span) -> dict[int, float]:
    """Tokens within the span; fractions, as frames do not say which tokens they hold."""
    tokens: dict[int, float] = {}
    for answer in answers:
        if answer.is_success:
            times_s = answer.times_s or [answer.end_s]  # an answer without a word has an end
            share = sum(map(span.holds, times_s)) / len(times_s)
            tokens[answer.user] = tokens.get(answer.user, 0.0) + answer.output_tokens * share
    return tokens


def _ttft_s(answer: Answer) -> float | None:
    return answer.times_s[0] - answer.sent_s if answer.times_s else None


def _tpot_s(answer: Answer) -> float | None:
    first_s = _ttft_s(answer)
    if first_s is None or answer.output_tokens < 2:
        return None
    return (answer.end_s - answer.sent_s - first_s) / (answer.output_tokens - 1)


def _gaps_s(answer: Answer) -> list[float]:
    return [later - earlier for earlier, later in pairwise(answer.times_s)]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    percents = {f"p{percent}": percentile(values, percent) for percent in (50, 90, 95, 99)}
    return {"mean": sum(values) / len(values), **percents, "max": max(values)}


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


# ------------------------------------------------------------------------------------ table

WIDTH = 56
FIGURES = (
    ("Successful requests", "num_success", "d"),
    ("Refused with 429", "num_429", "d"),
    ("Failed with 5xx", "num_5xx", "d"),
    ("Other failures", "num_other_failures", "d"),
    ("Maximum request concurrency", "users", "d"),
    ("Request rate configured (RPS)", "rate", ".2f"),
    ("Benchmark duration (s)", "seconds", ".2f"),
    ("Total input tokens", "prompt_tokens", "d"),
    ("Total generated tokens", "output_tokens", "d"),
    ("Request throughput (req/s)", "requests_per_s", ".2f"),
    ("Request goodput (req/s)", "goodput_per_s", ".2f"),
    ("Output token throughput (tok/s)", "output_tokens_per_s", ".2f"),
    ("Output tokens of a user (tok/s)", "user_tokens_per_s", ".2f"),
    ("Slowest user over the mean", "fairness", ".2f"),
    ("Longest gap between frames (s)", "longest_gap_s", ".2f"),
    ("Gaps that are stalls", "num_stalls", "d"),
    ("Generator's share of all cores", "generator_cpu_share", ".1%"),
)
SPREADS = (
    ("Time to First Token", "TTFT", "ttft_ms"),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot_ms"),
    ("Inter-token Latency", "ITL", "itl_ms"),
    ("End-to-end Latency", "E2EL", "e2el_ms"),
)


def table(row: Mapping[str, Any], title: str = "Serving Benchmark Result") -> str:
    """A row as vLLM prints it; what was not measured is left out."""
    lines = [f" {title} ".center(WIDTH, "=")]
    for name, key, form in FIGURES:
        if row.get(key) is not None:
            lines.append(f"{name + ':':<41}{row[key]:>{WIDTH - 41}{form}}")
    for heading, short, key in SPREADS:
        if row.get(key) is None:
            continue
        lines.append(heading.center(WIDTH, "-"))
        for label, kind in (("Mean", "mean"), ("Median", "p50"), ("P90", "p90"), ("P95", "p95"),
                            ("P99", "p99")):  # fmt: skip
            name = f"{label} {short} (ms):"
            lines.append(f"{name:<41}{row[key][kind]:>{WIDTH - 41}.2f}")
    lines += [f"error x{count}: {text}" for text, count in row.get("errors", {}).items()]
    return "\n".join([*lines, "=" * WIDTH])
