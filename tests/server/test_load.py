"""Many users at once, over HTTP, on a real model: nobody fails, nobody starves, nothing is kept."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.bench.load import (
    Lengths,
    Load,
    Workload,
    address_of,
    calibrated,
    get,
    run_load,
)
from nanochat.bench.load_client import Answer, ChatDialect, ask
from nanochat.bench.load_metrics import Slo
from nanochat.bench.load_model import made_up_tokens, random_weights
from nanochat.bench.load_wire import Address, Connection
from nanochat.common.errors import EngineError
from nanochat.engine.engine import Engine
from nanochat.model.config import GPTConfig
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.patience import wait_until
from tests.server.conftest import live

VOCAB_SIZE = 2000
DIALECT = ChatDialect(model="tiny")


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = GPTConfig.from_depth(2, vocab_size=VOCAB_SIZE, head_dim=32, context_len=256)
    return Engine(random_weights(config), Tokenizer(made_up_tokens(VOCAB_SIZE)), max_rows=16)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[Address]:
    model = ServedModel(name="tiny", tokenizer=engine.tokenizer, context_len=engine.context_len)
    with live(create_app(engine, model)) as url:
        yield address_of(url + "/v1")


@pytest.fixture(scope="module")
def workload(address: Address) -> Workload:
    asked = Workload(prompt=Lengths.parse("20-40"), output=Lengths.parse("16-32"))
    return calibrated(address, DIALECT, asked)


def is_idle(engine: Engine) -> bool:
    stats = engine.stats()
    return not engine.num_active and stats.num_free_blocks == stats.num_blocks


@pytest.mark.req("FR-068", "SC-010")
def test_eight_users_for_five_seconds(engine: Engine, address: Address, workload: Workload) -> None:
    # Starving is waiting for the others, not for the machine, which may stand still for seconds.
    patient = {"slo": Slo(ttft_s=60.0), "stall_s": 30.0}
    load = Load(workload=workload, users=8, seconds=5.0, warmup_s=0.5, **patient)
    row = run_load(address, DIALECT, load)
    assert row["num_success"] == row["num_requests"] >= 16 and row["errors"] == {}
    assert row["fairness"] >= 0.5 and row["num_stalls"] == 0
    assert row["output_tokens_per_s"] > 0 and row["goodput_per_s"] == row["requests_per_s"] > 0
    mean_prompt = row["prompt_tokens"] / row["num_success"]
    assert 20 <= mean_prompt <= 40  # the words were calibrated to the tokens that were asked for
    assert 0 < row["generator_cpu_share"] <= 1
    wait_until(lambda: is_idle(engine))


@pytest.mark.req("FR-068")
def test_arrivals_by_chance(engine: Engine, address: Address, workload: Workload) -> None:
    load = Load(workload=workload, rate=8.0, seconds=2.0, warmup_s=0.2)
    row = run_load(address, DIALECT, load)
    assert row["num_success"] == row["num_requests"] > 4 and row["users"] is None
    assert row["fairness"] is None and row["rate"] == 8.0
    wait_until(lambda: is_idle(engine))


@pytest.mark.req("SC-010")
def test_ten_streams_at_once_all_progress(
    engine: Engine, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first of them still writes, every other has begun, and none lags far behind."""
    run = engine.steps.run

    def run_when_all_are_there(*args: Any) -> Any:
        wait_until(lambda: engine.num_active == 10)  # however slowly requests come on this machine
        monkeypatch.undo()
        return run(*args)

    monkeypatch.setattr(engine.steps, "run", run_when_all_are_there)
    words = Workload(prompt=Lengths.parse("20"), output=Lengths.parse("150"))
    # Not one control token: it would end the answer, or begin a tool call, which is not shown.
    never = {str(token): -100 for token in engine.tokenizer.special_tokens.values()}
    fields = {"temperature": 1.0, "top_k": 0, "logit_bias": never}

    async def one(user: int) -> Answer:
        async with Connection(address) as connection:
            dialect = ChatDialect(model="tiny", fields=fields)
            return await ask(connection, dialect, words.ask(user, 0), user=user)

    async def together() -> list[Answer]:
        return await asyncio.gather(*(one(user) for user in range(10)))

    answers = asyncio.run(together())
    assert all(answer.is_success for answer in answers)
    assert [answer.output_tokens for answer in answers] == [150] * 10
    first_end_s = min(answer.end_s for answer in answers)
    frames = [sum(time_s < first_end_s for time_s in answer.times_s) for answer in answers]
    assert min(frames) >= max(frames) / 3


def test_what_does_not_answer_is_said(address: Address, workload: Workload) -> None:
    with pytest.raises(EngineError, match="does not answer: 404"):
        calibrated(address, ChatDialect(model="another"), workload)
    assert get(address, "/v1/models")[0] == 200
    long = Workload(prompt=Lengths.parse("20"), output=Lengths.parse("200"))
    load = Load(workload=long, users=4, seconds=0.05, warmup_s=0.0, drain_s=0.0)
    with pytest.raises(EngineError, match="not complete 0 s after"):
        run_load(address, DIALECT, load)
