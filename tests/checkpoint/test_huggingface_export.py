"""What is exported, run by transformers itself: logits, greedy continuations, caches, chat ids.

One module, because importing transformers takes two seconds.
"""

import ast
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

from nanochat.checkpoint.format import Checkpoint
from nanochat.checkpoint.hf.modeling_nanochat import NanoChatGPTConfig, NanoChatGPTForCausalLM
from nanochat.checkpoint.huggingface import is_native, read_huggingface
from nanochat.checkpoint.huggingface_export import MODEL_FILE, ROUNDING_NOTE, export_huggingface
from nanochat.checkpoint.resolve import load, read, restore
from nanochat.common.errors import CheckpointError, DataError
from nanochat.common.messages import conversation_from_json
from nanochat.model.config import Generation, GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.chat import render_prompt, render_training, stop_tokens
from nanochat.tokenizer.huggingface import BREAK
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.checkpoint.conftest import ReferenceDirectory
from tests.conftest import LOGITS_ATOL, SWITCHED_OFF
from tests.engine.conftest import GENERATIONS, random_model
from tests.golden import parity

LATER = GENERATIONS[1:]
LENGTHS = (1, 2, 40, 90)  # of prompts; the context is 96, and 30 tokens follow


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No bars and no chatter; model files are copied to a place of this test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))
    verbosity, path = transformers.logging.get_verbosity(), list(sys.path)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(verbosity)
    sys.path[:] = path


def checkpoint_of(model: GPT, tokenizer: Tokenizer, stage: str = "sft") -> Checkpoint:
    return Checkpoint(
        config=model.config,
        weights=dict(model.named_parameters()),
        tokenizer=tokenizer,
        state={"stage": stage, "step": 7},
    )


def exported(
    generation: Generation, tokenizer: Tokenizer, out: Path, **changes: Any
) -> tuple[Any, GPT]:
    """transformers' model and ours, as it computes there: V1 without rounding."""
    ours = random_model(generation)
    ours.load_state_dict(
        {n: p.to(changes.get("dtype", p.dtype)) for n, p in ours.named_parameters()}
    )
    written = export_huggingface(checkpoint_of(ours, tokenizer), out, **changes)
    assert written.is_native == (generation == "v1")
    return theirs_at(out), as_there(ours)


def theirs_at(directory: Path) -> Any:
    """V1 as transformers has it; the others by the model file itself, so that it is measured."""
    kind = json.loads((directory / "config.json").read_text())["model_type"]
    loader = AutoModelForCausalLM if kind == "nanochat" else NanoChatGPTForCausalLM
    return loader.from_pretrained(directory).eval()


def as_there(model: GPT) -> GPT:
    if not is_native(model.config):
        return model
    unrounded = GPT(dataclasses.replace(model.config, rope_dtype="compute"))
    unrounded.load_state_dict(model.state_dict())
    return unrounded.eval().requires_grad_(False)


def tokens_of(num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 291, (num_rows, num_tokens), generator=generator)


def greedy(model: GPT, tokens: Tensor, num_new: int) -> Tensor:
    """Everything computed anew for every token: nothing that a cache could spoil."""
    for _ in range(num_new):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens


def generate(model: Any, tokens: Tensor, num_new: int, **settings: Any) -> Tensor:
    return model.generate(
        tokens,
        attention_mask=settings.pop("attention_mask", torch.ones_like(tokens)),
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=None,
        **settings,
    )


# ------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "FR-070")
@torch.inference_mode()
def test_logits_and_greedy_continuations(
    generation: Generation, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Also past the context, and with windows shorter than the text."""
    theirs, ours = exported(generation, tiny_tokenizer, tmp_path / "out")
    tokens = tokens_of(2, 120)
    logits = theirs(tokens).logits
    assert logits.shape == (2, 120, 300) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, ours(tokens), atol=LOGITS_ATOL, rtol=0)
    assert theirs(tokens, logits_to_keep=2).logits.shape == (2, 2, 300)
    for length in LENGTHS:
        prompt = tokens[:1, :length]
        assert torch.equal(generate(theirs, prompt, 30), greedy(ours, prompt, 30)), length
    without = generate(theirs, tokens[:1, :5], 12, use_cache=False)
    assert torch.equal(without, greedy(ours, tokens[:1, :5], 12))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "FR-048", "FR-070")
@torch.inference_mode()
def test_trained_models_of_the_reference(
    generation: Generation, reference_directory: ReferenceDirectory, tmp_path: Path
) -> None:
    """Of V2 to V5 transformers computes the reference's own logits; of V1, those but for the
    rounding of the rotary table, which the export says."""
    checkpoint = read(reference_directory(generation))
    written = export_huggingface(checkpoint, tmp_path / "out")
    theirs, ours = theirs_at(tmp_path / "out"), as_there(restore(checkpoint, "here"))
    figures = parity.from_golden(generation)
    rows = figures.rows[:, :-1]
    torch.testing.assert_close(theirs(rows).logits, ours(rows), atol=LOGITS_ATOL, rtol=0)
    off = (theirs(rows).logits[:, :: figures.logits_every] - figures.logits).abs().max().item()
    if generation == "v1":
        assert LOGITS_ATOL < off < SWITCHED_OFF
        assert written.notes == (ROUNDING_NOTE,)
    else:
        assert off < LOGITS_ATOL
        assert written.notes == ()
    prompt = rows[:1, :100]
    assert torch.equal(generate(theirs, prompt, 24), greedy(ours, prompt, 24))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-070")
@torch.inference_mode()
def test_greedy_tokens_of_the_shared_folder(
    generation: Generation, shared_dir: Path, tmp_path: Path
) -> None:
    """What karpathy/nanochat itself wrote; its stop tokens are those of generation_config.json."""
    folder = shared_dir / "parity" / parity.FOLDERS[generation]
    checkpoint = read(folder / "base" / "base_checkpoints" / "d4")
    export_huggingface(checkpoint, tmp_path / "out")
    theirs = theirs_at(tmp_path / "out")
    cases = json.loads((folder / "expected.json").read_text())["generation"]
    fitting = [case for case in cases if len(case["greedy_tokens"]) <= 256]
    assert len(fitting) >= 3
    for case in fitting:
        prompt = torch.tensor([case["prompt_tokens"]])
        num_new = len(case["greedy_tokens"]) - prompt.size(1)
        assert generate(theirs, prompt, num_new)[0].tolist() == case["greedy_tokens"]


@pytest.mark.req("FR-046")
@torch.inference_mode()
def test_the_model_file_travels_with_the_model(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As users load it: by its directory alone, its code read from there."""
    ours = random_model("v5")
    export_huggingface(checkpoint_of(ours, tiny_tokenizer), tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "moved", trust_remote_code=True)
    assert type(theirs).__module__.startswith("transformers_modules.")
    assert theirs.config.model_type == NanoChatGPTConfig.model_type
    assert theirs.get_input_embeddings() is theirs.embedding
    assert theirs.get_output_embeddings() is theirs.head
    tokens = tokens_of(1, 20)
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=LOGITS_ATOL, rtol=0)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "moved", trust_remote_code=False)
    theirs.save_pretrained(tmp_path / "again")  # what transformers itself writes is read too
    shutil.copy(tmp_path / "moved" / "tokenizer.json", tmp_path / "again")
    again = load(str(tmp_path / "again")).model
    for (name, a), (_, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.req("FR-059")
def test_the_model_file_needs_torch_and_transformers_alone() -> None:
    source = sys.modules[NanoChatGPTForCausalLM.__module__].__file__
    assert source is not None and Path(source).name == MODEL_FILE
    imported = set()
    for node in ast.walk(ast.parse(Path(source).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported == {"torch", "transformers", "typing"}


@pytest.mark.req("FR-046")
def test_every_choice_of_a_config_is_one_the_model_file_reads() -> None:
    """A field added to GPTConfig has to be computed there too, or refused by the export."""
    source = Path(sys.modules[NanoChatGPTForCausalLM.__module__].__file__ or "").read_text()
    not_computed = {"context_len"}  # the rotary table has no end, windows are written out
    for field in dataclasses.fields(GPTConfig):
        assert (f'"{field.name}"' in source) != (field.name in not_computed), field.name


# ------------------------------------------------------------------------------ caches and masks


@pytest.mark.parametrize("generation", LATER)
@pytest.mark.req("FR-010", "FR-046")
@torch.inference_mode()
def test_a_cache_filled_in_any_chunks(
    generation: Generation, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The last chunk begins with a token whose predecessor only the cache knows."""
    theirs, ours = exported(generation, tiny_tokenizer, tmp_path / "out")
    tokens = tokens_of(2, 60)
    whole = ours(tokens)
    for cuts in ((0, 1, 60), (0, 30, 31, 33, 60), (0, 59, 60)):
        for cache in (DynamicCache(), DynamicCache(config=theirs.config)):
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
                out = theirs(tokens[:, start:stop], past_key_values=cache)
                torch.testing.assert_close(
                    out.logits, whole[:, start:stop], atol=LOGITS_ATOL, rtol=0
                )
                assert out.past_key_values is cache
    assert theirs(tokens, use_cache=False).past_key_values is None


@pytest.mark.parametrize("generation", LATER)
@pytest.mark.req("FR-015", "FR-046")
@torch.inference_mode()
def test_prompts_of_different_lengths_together(
    generation: Generation, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Padded on the left, each row continues as it does alone."""
    theirs, ours = exported(generation, tiny_tokenizer, tmp_path / "out")
    lengths, num_new = (3, 17, 40), 20
    rows = [tokens_of(1, length, seed=length) for length in lengths]
    pad = tiny_tokenizer.special("<|assistant_end|>")
    padded = torch.full((len(rows), max(lengths)), pad)
    mask = torch.zeros_like(padded)
    for index, row in enumerate(rows):
        padded[index, -row.size(1) :], mask[index, -row.size(1) :] = row[0], 1
    together = generate(theirs, padded, num_new, attention_mask=mask)
    for index, row in enumerate(rows):
        alone = greedy(ours, row, num_new)[0, row.size(1) :]
        assert torch.equal(together[index, max(lengths) :], alone), lengths[index]
    logits = theirs(padded, attention_mask=mask).logits
    assert torch.isfinite(logits).all(), "padding sees itself, so that nothing is NaN"


@pytest.mark.req("FR-010", "FR-046")
@torch.inference_mode()
def test_caches_that_are_cropped_repeated_and_reordered(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """What beam search and assisted generation do to a cache, they do to smear's tokens too."""
    theirs, ours = exported("v5", tiny_tokenizer, tmp_path / "out")
    tokens = tokens_of(2, 30)
    cache = DynamicCache()
    theirs(tokens, past_key_values=cache)
    cache.crop(-10)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    chosen = tokens[[1, 1, 0, 0]]
    logits = theirs(chosen[:, 20:25], past_key_values=cache).logits
    torch.testing.assert_close(logits, ours(chosen)[:, 20:25], atol=LOGITS_ATOL, rtol=0)
    beams = generate(theirs, tokens[:1], 8, num_beams=3, use_cache=True)
    assert torch.equal(beams, generate(theirs, tokens[:1], 8, num_beams=3, use_cache=False))


@torch.inference_mode()
def test_what_the_model_file_cannot_do_it_refuses(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokens = tokens_of(1, 8)
    for generation in ("v2", "v5"):
        theirs, _ = exported(generation, tiny_tokenizer, tmp_path / generation)
        with pytest.raises(ValueError, match="a cache of fixed size is not supported"):
            theirs(tokens, past_key_values=StaticCache(config=theirs.config, max_cache_len=16))
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 5\), expected \(batch, 8\)"):
        theirs(tokens, attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))
    cache = DynamicCache()
    for layer in range(4):  # somebody else's keys and values
        cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), layer)
    with pytest.raises(ValueError, match="the cache holds 3 tokens that this model has not seen"):
        theirs(tokens, past_key_values=cache)


@pytest.mark.req("FR-046")
def test_it_can_be_trained_there(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs, ours = exported("v5", tiny_tokenizer, tmp_path / "out")
    tokens = tokens_of(2, 24)
    loss = theirs(tokens, labels=tokens).loss
    expected = torch.nn.functional.cross_entropy(
        ours(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(loss, expected, atol=LOGITS_ATOL, rtol=0)
    loss.backward()
    assert theirs.get_input_embeddings().weight.grad is not None
    assert theirs.get_output_embeddings() is theirs.head, "the table is not shared"
    assert all(weight.grad is not None for weight in theirs.parameters())


@pytest.mark.parametrize("generation", ["v1", "v5"])
@pytest.mark.req("FR-046")
@torch.inference_mode()
def test_half_the_space(generation: Generation, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """bfloat16 weights are the float32 ones rounded once, and transformers computes with them."""
    theirs, ours = exported(generation, tiny_tokenizer, tmp_path / "out", dtype=torch.bfloat16)
    assert theirs.dtype == torch.bfloat16
    read_back = read_huggingface(tmp_path / "out").weights
    for name, weight in ours.named_parameters():
        assert torch.equal(read_back[name], weight), name
    logits = theirs(tokens_of(1, 20)).logits.float()
    assert (logits - ours(tokens_of(1, 20))).abs().mean() < 0.3


# ------------------------------------------------------------------------------ tokenizer and chat


@pytest.fixture(scope="module")
def their_tokenizer(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("chat") / "out"
    export_huggingface(checkpoint_of(random_model("v1"), tiny_tokenizer), directory)
    return AutoTokenizer.from_pretrained(directory)


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " sat\n"}],
    [
        {"role": "system", "content": "  Be brief. "},
        {"role": "user", "content": "\n\n12 + 30? {{ messages }} {% if %} \u00e9\U0001f600"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": " Let me see: "},
                {"type": "python", "text": "12+30"},
                {"type": "python_output", "text": "42"},
                {"type": "text", "text": "42. "},
            ],
        },
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "<|bos|> & <b> <|assistant_end|>"},
    ],
    [{"role": "user", "content": "x"}],
]


@pytest.mark.req("FR-029", "FR-046")
def test_conversations_become_our_ids(tiny_tokenizer: Tokenizer, their_tokenizer: Any) -> None:
    """Whole ones with their mask, and prompts, which end where the answer begins."""
    for raw in CONVERSATIONS:
        conversation = conversation_from_json(raw)
        there = their_tokenizer.apply_chat_template(
            raw, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens, mask = render_training(conversation, tiny_tokenizer)
        assert there["input_ids"] == tokens
        assert there["assistant_masks"] == mask
        asked = raw if raw[-1]["role"] == "user" else raw[:-1]
        for messages in (raw, asked):
            prompt = their_tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            assert prompt == render_prompt(conversation_from_json(messages), tiny_tokenizer)


@pytest.mark.req("FR-029")
def test_conversations_of_the_reference(
    reference_directory: ReferenceDirectory, tmp_path: Path
) -> None:
    checkpoint = read(reference_directory("v5"))
    export_huggingface(checkpoint, tmp_path / "out")
    there = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    figures = json.loads((parity.HERE / "tokenizer_figures.json").read_text(encoding="utf-8"))
    for case in figures["conversations"]:
        messages = case["conversation"]["messages"]
        ids = there.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert ids == case["ids"]
        ids = there.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert ids["input_ids"] == case["completion_prompt_ids"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([("system", "x")], "expected a message from user"),
        ([("assistant", "x")], "expected a message from user: user and assistant take turns"),
        ([("user", "x"), ("user", "y")], "expected a message from assistant"),
        ([("user", [{"type": "text", "text": "x"}])], "content is not a string"),
        ([("system", "x"), ("system", "y")], "expected a message from user"),
        ([("user", "x"), ("assistant", [{"type": "image", "text": ""}])], "parts of type text"),
    ],
)
@pytest.mark.req("FR-029")
def test_conversations_that_are_none(
    messages: list[tuple[str, Any]], message: str, tiny_tokenizer: Tokenizer, their_tokenizer: Any
) -> None:
    """What we refuse the template refuses."""
    raw = [{"role": role, "content": content} for role, content in messages]
    with pytest.raises(Exception, match=message):
        their_tokenizer.apply_chat_template(raw)
    with pytest.raises(DataError):
        render_training(conversation_from_json(raw), tiny_tokenizer)


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<", "bos", "|", " ", "x"])))
@pytest.mark.req("FR-062", "FR-029")
def test_what_people_say_never_becomes_a_special_token(
    tiny_tokenizer: Tokenizer, their_tokenizer: Any, pieces: list[str]
) -> None:
    """Their tokenizer takes a name in a text for the token; the template's mark keeps it text."""
    text = "".join(pieces)
    parts = [{"type": kind, "text": text} for kind in ("text", "python", "python_output")]
    raw = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
    ]
    there = their_tokenizer.apply_chat_template(
        raw, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = render_training(conversation_from_json(raw), tiny_tokenizer)
    assert there["input_ids"] == tokens
    assert there["assistant_masks"] == mask


@pytest.mark.req("FR-062")
def test_the_mark_itself_is_refused(their_tokenizer: Any) -> None:
    with pytest.raises(Exception, match=r"noncharacters U\+FDD0 U\+FDD1 U\+FDD2"):
        their_tokenizer.apply_chat_template([{"role": "user", "content": f"<|{BREAK}bos|>"}])


def test_text_in_two_parts_is_refused(their_tokenizer: Any) -> None:
    """We encode each part by itself; there they would be joined, to other ids."""
    parts = [{"type": "text", "text": "the c"}, {"type": "text", "text": "at"}]
    raw = [{"role": "user", "content": "x"}, {"role": "assistant", "content": parts}]
    with pytest.raises(Exception, match="two text parts in a row: join them"):
        their_tokenizer.apply_chat_template(raw)


@pytest.mark.req("FR-031", "FR-046")
def test_texts_become_our_ids(tiny_tokenizer: Tokenizer, their_tokenizer: Any) -> None:
    text = "the lazy dog\u00e9 12345  \n x"
    assert their_tokenizer(text)["input_ids"] == tiny_tokenizer.encode(text)
    assert their_tokenizer.decode(tiny_tokenizer.encode(text)) == text
    assert their_tokenizer("<|bos|>the")["input_ids"] == [
        tiny_tokenizer.bos,
        *tiny_tokenizer.encode("the"),
    ]
    ids = their_tokenizer("<|bos|>", split_special_tokens=True)["input_ids"]
    assert ids == tiny_tokenizer.encode("<|bos|>")
    assert len(their_tokenizer) == tiny_tokenizer.vocab_size
    assert their_tokenizer.bos_token_id == tiny_tokenizer.bos
    assert (
        their_tokenizer.eos_token_id
        == their_tokenizer.pad_token_id
        == stop_tokens(tiny_tokenizer)[0]
    )
    assert their_tokenizer.model_max_length == 96


@pytest.mark.req("FR-046")
@torch.inference_mode()
def test_generation_stops_where_ours_does(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_huggingface(checkpoint_of(random_model("v1"), tiny_tokenizer), tmp_path / "out")
    theirs = theirs_at(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == list(stop_tokens(tiny_tokenizer))
    assert theirs.generation_config.do_sample in (False, None)
    assert theirs.config.pad_token_id is None, "else a row of the table would never be trained"


# ------------------------------------------------------------------------------ the directory


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "SC-008")
def test_there_and_back(generation: Generation, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Every tensor bit for bit, padding included; every choice of the config; the tokenizer."""
    model = random_model(generation)
    assert model.config.padded_vocab_size > model.config.vocab_size
    written = export_huggingface(checkpoint_of(model, tiny_tokenizer), tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted(
        "README.md chat_template.jinja config.json generation_config.json model.safetensors "
        "tokenizer.json tokenizer_config.json".split()
        + (["padding.safetensors"] if written.is_native else [MODEL_FILE])
    )
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "one file is not more private than another"
    back = read_huggingface(tmp_path / "out")
    assert back.config == model.config and back.tokenizer == tiny_tokenizer
    assert (back.state["stage"], back.state["step"]) == ("sft", 7)
    assert set(back.weights) == set(dict(model.named_parameters()))
    for name, weight in model.named_parameters():
        assert torch.equal(back.weights[name], weight), name
    loaded = load(str(tmp_path / "out"))
    assert loaded.is_chat and loaded.model.config == model.config


@pytest.mark.req("FR-046")
def test_the_vocabulary_alone_is_what_transformers_sees(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Rows past it would have a probability.  Saved by transformers, they are gone, and stay so."""
    theirs, ours = exported("v1", tiny_tokenizer, tmp_path / "out")
    assert theirs.lm_head.weight.size(0) == theirs.config.vocab_size == 300
    theirs.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "out" / "tokenizer.json", tmp_path / "again")
    again = load(str(tmp_path / "again"))
    assert again.model.config.padded_vocab_size == 300
    assert torch.equal(again.model.head.weight, ours.head.weight[:300])


@pytest.mark.req("FR-046")
def test_widths_that_heads_do_not_divide(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """transformers takes head_dim from the config, not from the width."""
    config = dataclasses.replace(random_model("v1").config, model_dim=48, rope_base=5000.0)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    written = export_huggingface(checkpoint_of(model, tiny_tokenizer), tmp_path / "out")
    assert written.is_native
    theirs, tokens = theirs_at(tmp_path / "out"), tokens_of(1, 50)
    with torch.inference_mode():
        off = (theirs(tokens).logits - as_there(model)(tokens)).abs().max()
    assert off < LOGITS_ATOL


@pytest.mark.req("EC-2")
def test_nothing_is_overwritten_and_nothing_half_written(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(random_model("v5"), tiny_tokenizer)
    out = tmp_path / "out"
    out.mkdir()
    export_huggingface(checkpoint, out)  # an empty directory is as good as none
    for place in (out, out / "README.md"):
        with pytest.raises(CheckpointError, match="exists already and is not empty"):
            export_huggingface(checkpoint, place)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.checkpoint.huggingface_export.save_file", refuse)
    with pytest.raises(CheckpointError, match="half: not written, .*No space left"):
        export_huggingface(checkpoint, tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "m") == ["out"]


@pytest.mark.req("FR-071")
def test_the_card_says_how_and_what_differs(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    for generation, says in (("v1", "rotary table in float32"), ("v5", "trust_remote_code=True")):
        model = random_model(generation)  # type: ignore[arg-type]
        export_huggingface(checkpoint_of(model, tiny_tokenizer), tmp_path / generation)
        card = (tmp_path / generation / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers\n") and f"# {generation}\n" in card
        assert says in card and "Stage sft, step 7" in card
        code = card.split("```python\n")[1].split("```")[0]
        assert ("trust_remote_code" in code) == (generation == "v5")
        ast.parse(code)
