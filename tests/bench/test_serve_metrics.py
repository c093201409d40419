"""A load's numbers, from timelines made by hand: each figure can be worked out on paper."""

import random
import statistics

import pytest

from nanochat.bench.load import Lengths, Workload, address_of
from nanochat.bench.load_client import Answer
from nanochat.bench.load_metrics import Slo, Span, measure, percentile, table
from nanochat.common.errors import ConfigError

pytestmark = pytest.mark.req("FR-068")

SPAN = Span(start_s=10.0, stop_s=20.0, cpu_s=1.0, num_cores=2)


def answered(
    sent_s: float, *times_s: float, tokens: int = 0, user: int = 0, **fields: object
) -> Answer:
    """A whole answer with text at those moments; as many tokens as frames unless told."""
    return Answer(
        user=user,
        sent_s=sent_s,
        times_s=list(times_s),
        end_s=times_s[-1] if times_s else sent_s + 1,
        prompt_tokens=7,
        output_tokens=tokens or len(times_s),
        **{"status": 200, **fields},  # type: ignore[arg-type]
    )


def test_the_four_latencies() -> None:
    """Sent at 10; text at 10.2, 10.3, 10.5: 6 tokens in 3 frames."""
    row = measure([answered(10.0, 10.2, 10.3, 10.5, tokens=6)], SPAN, num_users=1)
    assert row["ttft_ms"]["mean"] == pytest.approx(200)
    assert row["itl_ms"]["mean"] == pytest.approx(150) and row["itl_ms"]["max"] == pytest.approx(
        200
    )
    assert row["tpot_ms"]["p50"] == pytest.approx((500 - 200) / 5)  # tokens from usage, not frames
    assert row["e2el_ms"]["p99"] == pytest.approx(500)
    assert row["output_tokens_per_s"] == pytest.approx(0.6)
    assert row["requests_per_s"] == pytest.approx(0.1)
    assert row["longest_gap_s"] == pytest.approx(0.2)
    assert row["prompt_tokens"] == 7 and row["output_tokens"] == 6


def test_only_the_span_counts() -> None:
    """Tokens within it count whenever their request was sent; latencies are of what was sent in
    it."""
    early = answered(8.0, 9.0, 9.5, 10.5, 11.0, tokens=8)  # half of its frames are inside
    late = answered(19.0, 19.5, 21.0, tokens=4)  # again half; ends outside
    row = measure([early, late], SPAN, num_users=1)
    assert row["output_tokens_per_s"] == pytest.approx((4 + 2) / 10)
    assert row["num_requests"] == 1 and row["ttft_ms"]["max"] == pytest.approx(500)
    assert row["requests_per_s"] == pytest.approx(0.1)  # the early one ended inside


def test_one_token_has_no_time_per_token_and_no_gap() -> None:
    row = measure([answered(11.0, 11.5)], SPAN, num_users=1)
    assert row["tpot_ms"] is row["itl_ms"] is row["longest_gap_s"] is None
    assert measure([], SPAN)["ttft_ms"] is None


def test_an_answer_without_text_has_tokens_at_its_end() -> None:
    row = measure([answered(11.0, tokens=5)], SPAN, num_users=1)
    assert row["output_tokens_per_s"] == pytest.approx(0.5) and row["ttft_ms"] is None


def test_failures_are_counted_by_kind_and_enter_no_latency() -> None:
    failures = [
        answered(11.0, status=429, error="full"),
        answered(11.0, status=503, error="loading"),
        answered(11.0, status=500, error="broken"),
        answered(11.0, status=400, error="wrong"),
        answered(11.0, 11.1, 11.2, error="in the middle"),
        answered(11.0, status=0, error="nobody listens"),
    ]
    row = measure([answered(11.0, 11.5, finish_reason="stop"), *failures], SPAN, num_users=1)
    counts = ("num_requests", "num_success", "num_429", "num_5xx", "num_other_failures")
    assert [row[name] for name in counts] == [7, 1, 1, 2, 3]
    assert row["ttft_ms"]["max"] == pytest.approx(500) and row["num_stopped"] == 1
    assert row["errors"]["429: full"] == 1 and len(row["errors"]) == 5
    assert row["output_tokens_per_s"] == pytest.approx(0.1)


def test_fairness_is_the_slowest_user_over_the_mean() -> None:
    answers = [
        answered(11.0, *[12.0] * count, user=user) for user, count in enumerate((30, 20, 10))
    ]
    row = measure(answers, SPAN, num_users=3)
    assert row["fairness"] == pytest.approx(0.5)
    assert row["user_tokens_per_s"] == pytest.approx(2.0)
    assert row["slowest_user_tokens_per_s"] == pytest.approx(1.0)
    assert measure(answers, SPAN, num_users=4)["fairness"] == 0  # one was never answered
    assert measure(answers, SPAN)["fairness"] is None  # an open loop has no users
    assert measure([], SPAN, num_users=2)["fairness"] is None


def test_stalls_are_silences_within_an_answer() -> None:
    answers = [answered(10.0, 13.0, 13.1, 15.2, 15.3), answered(10.0, 12.0, 12.5)]
    row = measure(answers, SPAN, num_users=1, stall_s=2.0)
    assert row["num_stalls"] == 1 and row["longest_gap_s"] == pytest.approx(2.1)


def test_goodput_counts_what_keeps_every_limit() -> None:
    quick, slow_first = answered(11.0, 11.1, 11.2), answered(11.0, 11.4, 11.5)
    slow_tokens, long = (
        answered(11.0, 11.1, 11.9),
        answered(11.0, 11.1, 11.15, 11.2, 14.0, tokens=90),
    )
    slo = Slo.parse("ttft:200 tpot:500 e2el:2000")
    assert [slo.is_kept(each) for each in (quick, slow_first, slow_tokens, long)] == [
        True, False, False, False]  # fmt: skip
    row = measure([quick, slow_first, slow_tokens, long], SPAN, num_users=1, slo=slo)
    assert row["goodput_per_s"] == pytest.approx(0.1)
    assert measure([quick], SPAN, num_users=1)["goodput_per_s"] is None
    for wrong in ("ttft", "ttft:fast", "itl:5", "ttft:-1", "ttft:inf"):
        with pytest.raises(ConfigError, match="expected ttft, tpot or e2el"):
            Slo.parse(wrong)


def test_the_generators_own_share() -> None:
    row = measure([], SPAN)
    assert row["generator_cores"] == pytest.approx(0.1)
    assert row["generator_cpu_share"] == pytest.approx(0.05)


def test_percentiles_against_the_standard_library() -> None:
    values = [random.Random(1).expovariate(1) for _ in range(37)]
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (1, 50, 90, 99):
        assert percentile(values, percent) == pytest.approx(quantiles[percent - 1])
    assert percentile([5.0], 99) == 5.0


def test_the_table_has_the_lines_of_vllms() -> None:
    row = measure([answered(10.0, 10.2, 10.3)], SPAN, num_users=1, slo=Slo.parse("ttft:300"))
    text = table({"users": 1, "rate": None, **row, "errors": {"429: full": 3}})
    lines = [line.rstrip("0123456789.% ") for line in text.splitlines()]
    for name in ("Successful requests:", "Benchmark duration (s):", "Total input tokens:",
                 "Total generated tokens:", "Request throughput (req/s):", "Mean TTFT (ms):",
                 "Output token throughput (tok/s):", "P99 TPOT (ms):", "Median ITL (ms):",
                 "Request goodput (req/s):"):  # fmt: skip
        assert name in lines
    assert "error x3: 429: full" in text and "Request rate" not in text
    assert len({len(line) for line in text.splitlines() if "error" not in line}) == 1


# ----------------------------------------------------------------------------------- workload


def test_lengths() -> None:
    dice = random.Random(0)
    assert {Lengths.parse("64").draw(dice) for _ in range(50)} == {64}
    drawn = [Lengths.parse("3-6").draw(dice) for _ in range(200)]
    assert set(drawn) == {3, 4, 5, 6}
    drawn = [Lengths.parse("~64").draw(dice) for _ in range(2000)]
    assert 58 < statistics.median(drawn) < 70 and max(drawn) <= 8 * 64 and min(drawn) >= 1
    for wrong in ("", "0", "x", "5-", "9-3", "~", "~2-4", "-5"):
        with pytest.raises(ConfigError, match="length"):
            Lengths.parse(wrong)


def test_equal_seeds_ask_the_same_and_no_two_prompts_are_alike() -> None:
    def asked(seed: int) -> list[object]:
        workload = Workload(prompt=Lengths.parse("20-40"), output=Lengths.parse("9"), seed=seed)
        return [workload.ask(user, number) for user in range(5) for number in range(5)]

    assert asked(1) == asked(1) != asked(2)
    assert len({ask.words[:40] for ask in asked(1)}) == 25  # type: ignore[attr-defined]


def test_prompts_have_the_words_that_make_their_tokens() -> None:
    workload = Workload(prompt=Lengths.parse("44"), output=Lengths.parse("9"),
                        template_tokens=4.0, tokens_per_word=2.0)  # fmt: skip
    assert len(workload.ask(0, 0).words.split()) == 20
    assert len(workload.ask(0, 0).words.split()) >= 1
    short = Workload(prompt=Lengths.parse("1"), output=Lengths.parse("9"), template_tokens=4.0)
    assert len(short.ask(0, 0).words.split()) == 1


def test_addresses() -> None:
    address = address_of("http://[::1]:8001/v1/", api_key="secret")
    assert (address.host, address.port, address.path) == ("::1", 8001, "")
    head = address.head("POST", "/v1/models", 3).decode()
    assert head.startswith("POST /v1/models HTTP/1.1\r\nHost: [::1]:8001\r\n")
    assert "Authorization: Bearer secret\r\n" in head and "Content-Length: 3\r\n" in head
    assert address_of("http://host/base").path == "/base" and address_of("http://host").port == 80
    for wrong in ("https://host", "host:80", "http://", "http://host:x"):
        with pytest.raises(ConfigError, match="http://host:port"):
            address_of(wrong)
