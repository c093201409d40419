"""What a dry run says of memory and time."""

import pytest

from nanochat.model.config import GPTConfig
from nanochat.model.cost import train_flops_per_token
from nanochat.train.estimate import activation_bytes_per_token, estimate_lines, state_bytes


@pytest.mark.req("FR-012", "EC-1")
def test_estimates() -> None:
    config = GPTConfig.from_depth(12, vocab_size=32_768)
    lines = estimate_lines(
        config,
        flops_per_token=train_flops_per_token(config),
        num_tokens=10**6,
        device_tokens=16 * 2048,
        flops_per_s=2e12,
    )
    values = {name: value for name, value, _ in lines}
    assert set(values) == {"parameters", "memory", "time"}
    expected = (state_bytes(config) + 16 * 2048 * activation_bytes_per_token(config)) / 2**30
    assert values["memory"] == f"{expected:.1f} GiB"
    assert state_bytes(config) == 18 * int(values["parameters"].replace(",", ""))
    minutes, seconds = values["time"].split(":")
    assert int(minutes) * 60 + int(seconds) == int(10**6 * train_flops_per_token(config) / 1e12)
