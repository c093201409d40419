"""Five generations compute what karpathy/nanochat computed: values, losses, gradients, costs.

Each test runs on the golden figures and, where the shared folder is, on all of it.
"""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.checkpoint.reference import load_config, name_of
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.request import NO_TOKEN
from nanochat.model.config import Generation, GPTConfig, ValueEmbedding, windows_from_pattern
from nanochat.model.cost import count_parameters, train_flops_per_token
from nanochat.model.gpt import GPT
from tests.conftest import GRAD_RTOL, LAYER_ATOL, LOGITS_ATOL, NOISE_ATOL, SWITCHED_OFF
from tests.golden.parity import GENERATIONS, Figures, from_golden, from_shared, model_of

WITH_GRADIENTS = [("v5", "golden"), *((generation, "shared") for generation in GENERATIONS)]
SCALARS = ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda")

golden = functools.cache(from_golden)


@pytest.fixture(params=["golden", "shared"])
def source(request: pytest.FixtureRequest) -> str:
    return request.param


def figures_of(generation: Generation, source: str, request: pytest.FixtureRequest) -> Figures:
    if source == "golden":
        return golden(generation)
    return from_shared(request.getfixturevalue("shared_dir"), generation)


@pytest.fixture(params=GENERATIONS)
def figures(source: str, request: pytest.FixtureRequest) -> Figures:
    return figures_of(request.param, source, request)


@pytest.fixture(params=GENERATIONS)
def golden_figures(request: pytest.FixtureRequest) -> Figures:
    return golden(request.param)


@torch.inference_mode()
def logits_of(model: GPT, tokens: Tensor) -> Tensor:
    return model(tokens)


def furthest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --------------------------------------------------------------------- which tokens they are


def test_the_rows_explain_every_loss(figures: Figures) -> None:
    logits, every = figures.logits, figures.logits_every
    targets, losses = figures.rows[:, 1::every], figures.losses[:, ::every]
    away = (-logits.log_softmax(-1) - losses[..., None]).abs()
    assert float(away.gather(-1, targets[..., None]).max()) <= LAYER_ATOL
    assert abs(float(figures.losses.mean()) - figures.numbers["mean_loss"]) <= LAYER_ATOL


def test_no_other_targets_would(source: str, request: pytest.FixtureRequest) -> None:
    figures = figures_of("v2", source, request)
    losses = figures.losses[:, :: figures.logits_every]
    away = (-figures.logits.log_softmax(-1) - losses[..., None]).abs()
    assert ((away <= LAYER_ATOL).sum(-1) == 1).all()


def test_no_other_first_tokens_would(figures: Figures) -> None:
    model = model_of(figures, figures.weights)
    first = logits_of(model, torch.arange(512)[:, None])[:, 0]
    for row in range(2):
        away = (first - figures.logits[row, 0]).abs().amax(-1)
        assert away.argmin() == figures.rows[row, 0]
        assert away.min() <= LOGITS_ATOL < SWITCHED_OFF < away.sort()[0][1]


# ------------------------------------------------------------------------------------- values


@pytest.mark.req(
    "FR-001", "FR-002", "FR-003", "FR-004", "FR-005", "FR-006", "FR-007", "FR-008", "FR-070"
)
def test_logits_and_losses(figures: Figures) -> None:
    logits = logits_of(model_of(figures, figures.weights), figures.rows[:, :-1])
    assert furthest(logits[:, :: figures.logits_every], figures.logits) <= LOGITS_ATOL
    losses = F.cross_entropy(logits.mT, figures.rows[:, 1:], reduction="none")
    assert furthest(losses, figures.losses) <= LOGITS_ATOL
    assert abs(float(losses.mean()) - figures.numbers["mean_loss"]) <= LOGITS_ATOL


@pytest.mark.req("FR-014", "FR-070")
def test_texts_longer_than_the_context(figures: Figures) -> None:
    tokens, expected = figures.over_context
    assert len(tokens) == 400
    logits = logits_of(model_of(figures, figures.weights), tokens[None])[0]
    assert furthest(logits[:: figures.long_every], expected) <= LOGITS_ATOL


@pytest.mark.req("FR-070")
def test_windows_of_a_longer_context(figures: Figures) -> None:
    tokens, expected = figures.long
    assert len(tokens) == 1400
    logits = logits_of(at_context_1024(figures), tokens[None])[0]
    assert furthest(logits[:: figures.long_every], expected) <= LOGITS_ATOL


def at_context_1024(figures: Figures, like: Generation | None = None) -> GPT:
    """The model with the windows its generation (or another) takes at this context."""
    windows = windows_from_pattern("SSSL", 4, 1024, like or figures.generation)
    return model_of(figures, figures.weights, context_len=1024, windows=windows)


@pytest.mark.req("FR-070")
def test_counts_are_exact(figures: Figures) -> None:
    config = load_config(figures.meta, figures.weights)
    model = model_of(figures, figures.weights)
    assert count_parameters(config).total == figures.numbers["num_params"]
    assert sum(weight.numel() for weight in model.parameters()) == figures.numbers["num_params"]
    assert train_flops_per_token(config) == figures.numbers["flops_per_token"]


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("generation", "source"), WITH_GRADIENTS)
@pytest.mark.req("FR-070", "SC-007")
def test_first_gradients(generation: str, source: str, request: pytest.FixtureRequest) -> None:
    """At initialisation half of a model is zero, and its scalars get gradients of about 1e-10 that
    are rounding noise: sums of large terms that cancel, in another order on another machine.
    Relative to their own maximum they agree with nothing; as zeros they agree."""
    figures = figures_of(generation, source, request)
    assert figures.first_weights and figures.first_grads
    model = model_of(figures, figures.first_weights)
    rows = figures.batches[0]
    loss = F.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:])
    loss.backward()
    assert abs(float(loss.detach()) - figures.numbers["init_loss"]) <= LAYER_ATOL
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(ours) == {name_of(name) for name in figures.first_grads}
    for name, theirs in figures.first_grads.items():
        grad = ours[name_of(name)]
        assert grad is not None
        tolerance = NOISE_ATOL if name in SCALARS else GRAD_RTOL * float(theirs.abs().max())
        assert furthest(grad, theirs) <= tolerance, name


# ------------------------------------------------------------------- each choice is a real one


def switched(figures: Figures, **changes: Any) -> GPT:
    """The same weights in a model of another config; weights it has no place for are left out."""
    config = dataclasses.replace(load_config(figures.meta, figures.weights), **changes)
    wanted = set(GPT(config).state_dict())
    kept = {name: weight for name, weight in figures.weights.items() if name_of(name) in wanted}
    return model_of(figures, kept, **changes)


def one_window(config: GPTConfig, tokens: int) -> tuple[int | None, ...]:
    return (tokens, *config.windows[1:])


SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "no smear": ("v5", {"smear_channels": None}),
    "no backout": ("v5", {"backout": False}),
    "no residual lambdas, v2": ("v2", {"residual_lambdas": False}),
    "no residual lambdas, v5": ("v5", {"residual_lambdas": False}),
    "no value embedding, v3": ("v3", {"value_embedding": None}),
    "no value embedding, v5": ("v5", {"value_embedding": None}),
    "gate scale of v5, v3": ("v3", {"value_embedding": ValueEmbedding(32, 3.0)}),
    "gate scale of v3, v4": ("v4", {"value_embedding": ValueEmbedding(12, 2.0)}),
    "gate scale of v3, v5": ("v5", {"value_embedding": ValueEmbedding(12, 2.0)}),
    "rope base of v4, v1": ("v1", {"rope_base": 100_000.0}),
    "rope base of v4, v3": ("v3", {"rope_base": 100_000.0}),
    "rope base of v3, v5": ("v5", {"rope_base": 10_000.0}),
    "QK scale of v4, v3": ("v3", {"qk_scale": 1.15}),
    "QK scale of v5, v4": ("v4", {"qk_scale": 1.2}),
    "QK scale of v4, v5": ("v5", {"qk_scale": 1.15}),
    "another soft cap": ("v5", {"logit_softcap": 30.0}),
    "another epsilon": ("v5", {"norm_eps": 1e-2}),
    "one full window, v2": ("v2", {"windows": (256, 128, 128, 256)}),
    "one full window, v5": ("v5", {"windows": (256, 128, 128, 256)}),
    "one window a token shorter, v3": ("v3", {"windows": (127, 128, 128, 256)}),
    "one window a token longer, v5": ("v5", {"windows": (128, 129, 128, 256)}),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.req("FR-070")
def test_every_switch_matters(switch: str) -> None:
    generation, changes = SWITCHES[switch]
    figures = golden(generation)
    logits = logits_of(switched(figures, **changes), figures.rows[:, :-1])
    assert furthest(logits[:, :: figures.logits_every], figures.logits) > SWITCHED_OFF


@pytest.mark.parametrize(
    ("generation", "other"),
    [
        ("v1", "compute"),
        ("v2", "compute"),
        ("v3", "compute"),
        ("v4", "bfloat16"),
        ("v5", "bfloat16"),
    ],
)
@pytest.mark.req("FR-002", "FR-070")
def test_the_rounding_of_cos_and_sin_matters(generation: str, other: str) -> None:
    """It moves logits by 2e-4 to 6e-4: enough to fail the parity above, which holds to 5e-6."""
    figures = golden(generation)
    logits = logits_of(switched(figures, rope_dtype=other), figures.rows[:, :-1])
    assert furthest(logits[:, :: figures.logits_every], figures.logits) > LOGITS_ATOL


@pytest.mark.parametrize(("generation", "other"), [("v3", "v4"), ("v4", "v5"), ("v5", "v4")])
@pytest.mark.req("FR-070")
def test_the_windows_of_another_generation_are_seen(generation: str, other: Generation) -> None:
    figures = golden(generation)
    tokens, expected = figures.long
    logits = logits_of(at_context_1024(figures, like=other), tokens[None])[0]
    assert furthest(logits[:: figures.long_every], expected) > SWITCHED_OFF


# -------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.req("FR-010", "FR-070")
def test_cached_logits_equal_uncached_ones(golden_figures: Figures, chunk: int) -> None:
    model = model_of(golden_figures, golden_figures.weights)
    tokens = golden_figures.over_context[0][:300]
    forward = Forward(model, format="float32")
    blocks = -(-len(tokens) // BLOCK_TOKENS)
    tables = {window: list(range(blocks)) for window in model.config.windows}
    memory = KVMemory(model.config, dict.fromkeys(tables, blocks))
    pieces, previous, start = [], NO_TOKEN, 0
    for piece in tokens.split(chunk):
        if len(piece) == 1:
            token = int(piece)
            hidden = forward.decode([token], [previous], [start], [tables], memory)
        else:
            hidden = forward.prefill([Piece(piece.tolist(), previous, start, tables)], memory)
        pieces.append(forward.logits(hidden))
        previous, start = int(piece[-1]), start + len(piece)
    assert furthest(torch.cat(pieces), logits_of(model, tokens[None])[0]) <= LOGITS_ATOL


# --------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.req("FR-063")
def test_logits_on_a_gpu(golden_figures: Figures) -> None:
    model = model_of(golden_figures, golden_figures.weights).to("cuda")
    logits = logits_of(model, golden_figures.rows[:, :-1].to("cuda")).cpu()
    stored = logits[:, :: golden_figures.logits_every]
    assert furthest(stored, golden_figures.logits) <= LOGITS_ATOL
