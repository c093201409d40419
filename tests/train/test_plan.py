"""The plan: karpathy/nanochat's numbers by depth, what a CPU changes, and a reason for each."""

import dataclasses
import json
from typing import Any

import pytest

from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig
from nanochat.model.cost import train_flops_per_token
from nanochat.train.config import MidtrainConfig, PretrainConfig, SftConfig
from nanochat.train.plan import Hardware, Plan, plan_chat_stage, plan_pretrain

GPU = Hardware(device_type="cuda", memory_bytes=139 * 2**30, has_compiler=True)
CPU = Hardware(device_type="cpu", memory_bytes=16 * 2**30, has_compiler=True)
BARE_CPU = dataclasses.replace(CPU, has_compiler=False)


def plan(depth: int = 12, hardware: Hardware = GPU, context_len: int = 2048, **said: Any) -> Plan:
    model = GPTConfig.from_depth(depth, vocab_size=32_768, context_len=context_len)
    return plan_pretrain(PretrainConfig(depth=depth, **said), model, hardware)


# Recomputed from base_train.py at 92d63d4; agrees with the cards of its released models.
@pytest.mark.parametrize(
    ("depth", "log2_batch", "steps", "steps_at_ratio_8", "weight_decay"),
    [
        (4, 18, 528, 352, 1.890),
        (8, 18, 1_920, 1_280, 0.520),
        (12, 19, 2_520, 1_680, 0.280),
        (16, 19, 5_376, 3_584, 0.131),
        (20, 20, 4_980, 3_320, 0.100),
        (22, 20, 6_517, 4_345, 0.077),
        (24, 20, 8_352, 5_568, 0.060),
        (26, 20, 10_510, 7_007, 0.0475),
        (32, 21, 9_600, 6_400, 0.0368),
    ],
)
@pytest.mark.req("FR-021", "FR-024")
def test_numbers_by_depth(
    depth: int, log2_batch: int, steps: int, steps_at_ratio_8: int, weight_decay: float
) -> None:
    found = plan(depth)
    assert found.batch_tokens == 2**log2_batch
    assert found.num_steps == found.schedule.num_steps == steps
    assert found.schedule.weight_decay == pytest.approx(weight_decay, rel=0.01)
    assert found.lr_scale == pytest.approx((2**log2_batch / 2**19) ** 0.5)
    assert found.schedule.warmup_steps == 40 and found.schedule.peak_lr == 1.0
    shorter = plan(depth, tokens_per_parameter=8.0)
    assert shorter.num_steps == steps_at_ratio_8
    assert shorter.batch_tokens == 2**log2_batch  # the batch depends on the depth alone


@pytest.mark.req("FR-024")
def test_weight_decay_refers_to_depth_12_at_the_same_vocabulary() -> None:
    """base_train.py at 92d63d4 prints 1.039433 for this run."""
    model = GPTConfig.from_depth(4, vocab_size=4096, context_len=512, head_dim=64)
    config = PretrainConfig(depth=4, head_dim=64, batch_tokens=16_384)
    found = plan_pretrain(config, model, CPU)
    assert found.schedule.weight_decay == pytest.approx(1.039433, rel=1e-6)


@pytest.mark.req("FR-064")
def test_a_cpu_takes_many_small_steps() -> None:
    found = plan(6, CPU, context_len=512)
    assert (found.batch_tokens, found.batch_rows, found.device_batch_rows) == (16_384, 32, 8)
    assert found.lr_scale == pytest.approx((16_384 / 2**19) ** 0.5)
    assert "CPU" in found.reasons["batch"]
    # a step on a CPU may be smaller still
    tiny = GPTConfig.from_depth(
        1, vocab_size=64, context_len=64, head_dim=8, aspect_ratio=8, generation="v1"
    )
    small = plan_pretrain(PretrainConfig(depth=1), tiny, CPU)
    assert small.batch_tokens < 16_384 and "budget" in small.reasons["batch"]
    assert plan(6, CPU, context_len=8192).device_batch_rows == 1  # a row is always computed


def test_rows_at_once_fit_the_memory() -> None:
    sizes = [
        plan(12, dataclasses.replace(GPU, memory_bytes=gib * 2**30)).device_batch_rows
        for gib in (4, 16, 48, 139)
    ]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] >= 32
    assert all(rows & (rows - 1) == 0 for rows in sizes)
    assert plan(12, GPU, batch_tokens=4096).device_batch_rows == 2  # never more than the batch
    assert "GiB of activations a row" in plan().reasons["at once"]


@pytest.mark.req("FR-012")
def test_what_is_said_is_done() -> None:
    found = plan(
        num_steps=77,
        batch_tokens=10_000,
        device_batch_rows=3,
        lr_scale=0.5,
        warmup_steps=5,
        eval_every=9,
        compile="off",
    )
    assert (found.num_steps, found.batch_rows, found.batch_tokens) == (77, 4, 8192)  # whole rows
    assert (found.device_batch_rows, found.eval_every, found.is_compiled) == (3, 9, False)
    assert (found.schedule.peak_lr, found.schedule.warmup_steps) == (0.5, 5)
    said = {"learning rates", "weight decay", "compiled", "sharded", "recomputed"}
    assert set(found.reasons) == said
    assert plan(num_steps=77).schedule.warmup_steps == 7
    assert plan(num_steps=77).eval_every == 19
    assert plan(num_steps=3).eval_every == 1
    assert plan(num_steps=3, eval_every=0).eval_every == 0


@pytest.mark.parametrize(
    ("hardware", "said", "is_compiled", "reason"),
    [
        (GPU, {}, True, "long enough"),
        (GPU, {"num_steps": 1}, False, "too short"),
        (GPU, {"num_steps": 1, "compile": "on"}, True, None),
        (GPU, {"compile": "off"}, False, "switched off"),
        (dataclasses.replace(GPU, has_compiler=False), {}, True, "long enough"),
        (BARE_CPU, {}, False, "no C++ compiler"),
        (CPU, {"num_steps": 10}, False, "too short"),
        (CPU, {}, True, "long enough"),
        (dataclasses.replace(GPU, device_type="mps"), {"compile": "on"}, False, "MPS"),
    ],
)
def test_what_is_compiled(
    hardware: Hardware, said: dict[str, Any], is_compiled: bool, reason: str | None
) -> None:
    found = plan(12, hardware, **said)
    assert found.is_compiled is is_compiled
    assert (reason or "") in found.reasons.get("compiled", "")
    assert ("compiled" in found.reasons) == (reason is not None)


def test_a_compiler_that_is_not_there_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"--compile on needs a C\+\+ compiler"):
        plan(12, BARE_CPU, compile="on")


def test_a_batch_is_at_least_one_row() -> None:
    expected = "batch_tokens is 100, less than one row of context_len 2048"
    with pytest.raises(ConfigError, match=expected):
        plan(batch_tokens=100)
    model = GPTConfig.from_depth(2, vocab_size=300, context_len=2048)
    with pytest.raises(ConfigError, match=expected):
        plan_chat_stage(
            MidtrainConfig(model="d2", batch_tokens=100),
            model,
            CPU,
            10,
            batch_tokens=4096,
            decay_fraction=0.2,
        )


@pytest.mark.req("FR-022", "FR-023", "FR-024")
def test_stages_on_conversations() -> None:
    model = GPTConfig.from_depth(2, vocab_size=300, context_len=128)

    def chat_plan(rows: int = 1001, **said: Any) -> Plan:
        return plan_chat_stage(
            SftConfig(model="d2", **said), model, CPU, rows, batch_tokens=1024, decay_fraction=0.5
        )

    found = chat_plan()
    assert (found.batch_rows, found.num_steps) == (8, 126)  # every row once, the last batch too
    assert found.lr_scale == pytest.approx((1024 / 2**19) ** 0.5)
    schedule = found.schedule
    assert (schedule.peak_lr, schedule.warmup_steps, schedule.final_lr) == (0.8, 0, 0.0)
    assert (schedule.decay_fraction, schedule.weight_decay) == (0.5, 0.0)
    # chat_sft.py at 92d63d4: 0.85 to 0.95 over 300 steps
    momenta = [schedule.momentum_at(step) for step in (0, 150, 300, 400)]
    assert momenta == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert "1,001 rows" in found.reasons["steps"]
    asked = chat_plan(num_steps=5, batch_tokens=300, lr_scale=0.5, warmup_steps=2)
    assert (asked.num_steps, asked.batch_rows, asked.schedule.warmup_steps) == (5, 2, 2)
    assert asked.schedule.peak_lr == 0.4 and "steps" not in asked.reasons
    assert chat_plan(rows=1).num_steps == 1


@pytest.mark.req("FR-078")
def test_a_plan_can_be_printed_and_saved() -> None:
    found = plan()
    lines = {name: (value, reason) for name, value, reason in found.lines()}
    assert lines["steps"][0] == "2,520" and "12 tokens for each" in lines["steps"][1]
    assert lines["batch"] == (
        "256 rows of 2048 = 524,288 tokens",
        "grows with the token budget to the power 0.383",
    )
    assert lines["tokens"] == ("1,321,205,760", "")
    assert lines["learning rates"][0] == "x 1.0000" and lines["weight decay"][0] == "0.2800"
    assert lines["compiled"][0] == "yes"
    # all that was chosen and not said has its reason on a line
    assert set(found.reasons) == {name for name, (_, reason) in lines.items() if reason}
    saved = json.loads(json.dumps(found.to_json()))
    assert saved["num_steps"] == 2520 and saved["batch_tokens"] == 2**19
    model = GPTConfig.from_depth(12, vocab_size=32_768)
    assert saved["flops_per_token"] == train_flops_per_token(model)
    assert saved["reasons"] == found.reasons


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"vocab_size": 200}, "vocab_size is 200, expected at least 265"),
        ({"num_steps": 0}, "num_steps is 0, expected at least 1"),
        ({"seed": -1, "context_len": 1}, "seed is -1.*context_len is 1"),
        ({"lr_scale": 0.0}, "lr_scale is 0.0, expected more than 0"),
        ({"lr_scale": float("nan")}, "lr_scale is nan"),
        ({"tokens_per_parameter": 0.0}, "tokens_per_parameter is 0.0, expected more than 0"),
        ({"eval_every": -1, "log_every": 0}, "eval_every is -1.*log_every is 0"),
    ],
)
def test_settings_out_of_range_are_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**said)


@pytest.mark.parametrize("config_type", [MidtrainConfig, SftConfig])
def test_settings_of_the_chat_stages_too(config_type: type[MidtrainConfig]) -> None:
    with pytest.raises(ConfigError, match="num_epochs is 0, expected at least 1"):
        config_type(model="d2", num_epochs=0)
    with pytest.raises(ConfigError, match="num_conversations is 0, expected at least 1"):
        config_type(model="d2", num_conversations=0)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="text_share is .*, expected 0 to less than 1"):
            config_type(model="d2", text_share=share)


@pytest.mark.req("FR-016", "EC-1")
def test_what_outgrows_a_device_is_sharded_and_recomputed() -> None:
    """Depth 40 is 6.3 billion weights at this vocabulary: 6 bytes of each alone fill 35 GiB."""
    small = dataclasses.replace(GPU, memory_bytes=80 * 2**30)
    whole, alone = plan(24, small), plan(40, small)
    assert (whole.is_sharded, whole.recomputes) == (False, False)
    assert not alone.is_sharded and alone.recomputes  # there is nobody to share with
    assert alone.reasons["sharded"] == "one process holds all of the model"
    eight = dataclasses.replace(small, num_ranks=8)
    shared = plan(24, eight)
    assert not shared.is_sharded and shared.device_batch_rows >= whole.device_batch_rows
    assert shared.reasons["sharded"].startswith("whole on each rank it takes 9.7 GiB of")
    tight = dataclasses.replace(eight, memory_bytes=48 * 2**30)
    cut = plan(40, tight)
    assert cut.is_sharded and not cut.is_compiled
    assert "and leaves no row room in 33.6 GiB" in cut.reasons["sharded"]
    assert cut.reasons["compiled"] == "a sharded model is computed without"
    cramped = plan(24, dataclasses.replace(eight, memory_bytes=17 * 2**30))
    assert cramped.recomputes and "GiB are free for them" in cramped.reasons["recomputed"]
    assert plan(12, eight, shard_model="on", recompute="on").to_json()["is_sharded"]
    assert not plan(40, tight, shard_model="off", recompute="off").recomputes
    lines = {name: value for name, value, _ in cut.lines()}
    assert lines["sharded"] == "yes" and lines["recomputed"] in ("yes", "no")


@pytest.mark.req("FR-016")
def test_sharding_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is one process: start several with torchrun"):
        plan(shard_model="on")
    with pytest.raises(ConfigError, match="a sharded model is computed without"):
        plan(hardware=dataclasses.replace(GPU, num_ranks=2), shard_model="on", compile="on")
