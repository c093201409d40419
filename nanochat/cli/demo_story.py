"""The demo's stages, one after the other.   in: demo.Config   out: Story   who calls: cli/demo.py

    text -> tokenizer -> pretrain -> midtrain -> (examination) -> sft -> examination -> report.html
Each stage says what it does and why.  How long each may take is planned from a measurement of this
machine.
Read next: train/pretrain.py, train/midtrain.py, train/sft.py.
"""

import itertools
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nanochat.batches.sources import Chats, Part, Texts, chat_store, mixed, text_stores
from nanochat.batches.store import TokenStore
from nanochat.checkpoint.resolve import load, run_directory
from nanochat.cli.demo import Config
from nanochat.cli.demo_budget import Budget
from nanochat.cli.demo_place import begin_anew, check_replaceable
from nanochat.cli.demo_recipes import OWN, WORLD
from nanochat.common.config import to_json_dict
from nanochat.common.device import best_device, compute_dtype, machine_name
from nanochat.common.messages import Conversation
from nanochat.corpus.files import ReadReport
from nanochat.engine.engine import Engine
from nanochat.evals.exam import (
    Exam,
    exam_table,
    identity_and_memory,
    sample_conversations,
    take_exam,
)
from nanochat.evals.report import Report, StageReport, write_report
from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer
from nanochat.train.config import MidtrainConfig, PretrainConfig, SftConfig
from nanochat.train.display import Display, format_duration
from nanochat.train.midtrain import midtrain
from nanochat.train.pilot import tokens_per_s
from nanochat.train.pretrain import model_config_of, pretrain
from nanochat.train.sft import sft
from nanochat.train.stages import Finished

__all__ = ["Story", "tell"]

SAMPLE_CONVERSATIONS = 5
TO_SAMPLE_FROM = 1000  # those that do not fit the context are passed over
PARTS: tuple[Part, ...] = ("validation", "train")
STAGE_TITLES = {"pretrain": "Pretraining", "midtrain": "Mid-training", "sft": "Fine-tuning"}
WORLD_CHARS = 8_000_000
EVAL_TOKENS = 32_768
WORLD_CONVERSATIONS = 20_000  # for each stage: no demo gets through them twice
PADDED = 1.9  # tokens computed for each of a padded row's own, measured on the built-in world


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What the demo leaves."""

    report: Path
    num_correct: int | None
    """Held-out questions answered exactly; None with one's own text, which has none."""
    num_asked: int | None


def tell(config: Config) -> Story:
    """Train everything and write the report; the run is `config.run`.

    Raises: DataError for the user's files, ConfigError for what they ask.
    """
    return _Teller(config).tell()


class _Teller:
    """The state of one telling."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.is_world = not config.text
        recipe = WORLD if self.is_world else OWN
        self.recipe = replace(recipe, minutes=config.minutes or recipe.minutes)
        self.display = Display(log_every=50)
        self.start_s = time.monotonic()
        self.directory = run_directory(config.home, config.run)
        self.stages: list[StageReport] = []
        self.engines: dict[Path, Engine] = {}
        self.val_bpb: float | None = None  # after the last stage, on the same rows for all
        self.common: dict[str, Any] = {
            "home": config.home,
            "run": config.run,
            "seed": config.seed,
            "overwrite": True,
            "log_every": 50,
            "save_every": 0,
        }

    def tell(self) -> Story:
        check_replaceable(self.directory)
        texts, mid_chats, sft_chats = self._sources()
        early = self._tokens_per_s(self.recipe.vocab_size)
        tokenizer = self._tokenizer(texts)
        # All that is the user's is read before anything is replaced: a bad line costs no training.
        mid_store = self._conversations("mid-training", mid_chats, tokenizer)
        sft_store = self._conversations("fine-tuning", sft_chats, tokenizer)
        held_out = _to_sample(sft_chats)
        train, validation = self._tokens(texts, tokenizer)
        self.budget = self._budget(tokenizer, early)
        begin_anew(self.directory, to_json_dict(self.config))
        base = self._pretrain(tokenizer, train, validation)
        mid = self._midtrain(mid_store, train, validation)
        before = self._exam(mid)
        tuned = self._sft(sft_store, validation)
        after = self._exam(tuned)
        if after is not None:
            self.say("", *exam_table(before, after))
        report = self._report([base, mid, tuned], before, after, held_out)
        self.say(f"\nreport: {report}", f"chat:   nanochat chat {self.config.run}")
        return Story(
            report=report,
            num_correct=after.num_correct if after else None,
            num_asked=after.num_asked if after else None,
        )

    def say(self, *lines: str) -> None:
        for line in lines:
            self.display.note(line)

    def chapter(self, title: str, why: str) -> None:
        self.say(f"\n{title}   ({format_duration(time.monotonic() - self.start_s)})", f"  {why}")

    # ------------------------------------------------------------------------------------- text

    def _sources(self) -> tuple[Texts, Chats, Chats]:
        if self.is_world:
            seed = self.config.seed
            return (
                Texts.from_world(WORLD_CHARS, seed),
                Chats.from_world("midtrain", WORLD_CONVERSATIONS, seed),
                Chats.from_world("sft", WORLD_CONVERSATIONS, seed),
            )
        home = self.config.home
        chats = Chats.from_files(self.config.chats, home=home)
        return Texts.from_files(self.config.text, home=home), chats, chats

    def _tokenizer(self, texts: Texts) -> Tokenizer:
        self.chapter(
            "The vocabulary",
            f"{self.recipe.vocab_size:,} pieces of text, learned from the training text by "
            "merging frequent pairs.",
        )
        documents = (document.text for document in texts.documents("train", None))
        tokenizer = train_tokenizer(
            documents, self.recipe.vocab_size, max_chars=20_000_000, doc_cap=50_000
        )
        self.say(f"  text: {texts.rule}")
        return tokenizer

    def _conversations(self, stage: str, chats: Chats, tokenizer: Tokenizer) -> TokenStore:
        report = ReadReport()
        store = chat_store(chats, "train", tokenizer, self.config.home, report)
        self.say(*(f"  {line}" for line in report.lines()))
        self.say(
            f"  {store.num_documents:,} conversations, {store.num_tokens:,} tokens, for {stage}"
        )
        return store

    def _tokens(self, texts: Texts, tokenizer: Tokenizer) -> tuple[TokenStore, TokenStore]:
        report = ReadReport()
        train, validation = text_stores(texts, tokenizer, self.config.home, report)
        self.say(*(f"  {line}" for line in report.lines()))
        characters = train.num_characters / max(1, train.num_tokens)
        self.say(
            f"  {train.num_tokens:,} tokens to train on, {validation.num_tokens:,} to validate on, "
            f"{characters:.2f} characters each"
        )
        return train, validation

    def _tokens_per_s(self, vocab_size: int) -> float:
        recipe = self.recipe
        rows = max(1, min(16, recipe.batch_tokens // recipe.context_len))
        return tokens_per_s(self._model_config(vocab_size), recipe.batch_tokens, rows)

    def _budget(self, tokenizer: Tokenizer, early: float) -> Budget:
        """Planned with the faster of two measurements, seconds apart: another program that
        has something to do for a moment must not decide how long the model learns."""
        recipe = self.recipe
        speed = max(early, self._tokens_per_s(tokenizer.vocab_size))
        model_config = self._model_config(tokenizer.vocab_size)
        self.say(
            f"  this machine: {machine_name(best_device())}, about {speed:,.0f} tokens/s for "
            f"{count_parameters(model_config).total / 1e6:.1f} M parameters"
        )
        shares = {
            "pretrain": recipe.pretrain_share,
            "midtrain": recipe.midtrain_share,
            "sft": recipe.sft_share,
        }
        spent_s = time.monotonic() - self.start_s
        return Budget(recipe.minutes * 60 - spent_s, shares, speed)

    def _model_config(self, vocab_size: int) -> GPTConfig:
        return model_config_of(self._pretrain_config(None), vocab_size)

    # ----------------------------------------------------------------------------------- stages

    def _pretrain_config(self, num_steps: int | None) -> PretrainConfig:
        recipe = self.recipe
        return PretrainConfig(
            depth=recipe.depth,
            aspect_ratio=recipe.aspect_ratio,
            head_dim=recipe.head_dim,
            context_len=recipe.context_len,
            batch_tokens=recipe.batch_tokens,
            lr_scale=recipe.lr_scale,
            num_steps=num_steps,
            # The facts asked about stand anywhere in a text.
            remainders="reuse" if self.is_world else None,
            compile="off" if self.is_world else "auto",
            eval_tokens=EVAL_TOKENS,
            **self.common,
        )

    def _pretrain(
        self, tokenizer: Tokenizer, train: TokenStore, validation: TokenStore
    ) -> Finished:
        why = "The model reads text and learns to say which token comes next: language, and facts."
        self.chapter("Pretraining", why)
        recipe = self.recipe
        steps = self.budget.num_steps("pretrain", recipe.batch_tokens)
        if recipe.most_tokens is not None:
            steps = min(steps, recipe.most_tokens // recipe.batch_tokens)
        config = self._pretrain_config(steps)
        return self._told(why, pretrain(config, tokenizer, train, validation, self.display))

    def _midtrain(self, chats: TokenStore, text: TokenStore, validation: TokenStore) -> Finished:
        why = (
            "Conversations in long rows, with some text among them: who speaks when, choices, "
            "tools, spelling."
        )
        self.chapter("Mid-training", why)
        recipe = self.recipe
        config = MidtrainConfig(
            model=f"{self.config.run}/pretrain",
            num_steps=self.budget.num_steps("midtrain", recipe.batch_tokens),
            batch_tokens=recipe.batch_tokens,
            lr_scale=recipe.midtrain_lr,
            eval_every=0,
            eval_tokens=EVAL_TOKENS,
            compile="off",
            num_epochs=1,
            **self.common,
        )
        rows = mixed(chats, text, recipe.text_share)
        return self._told(why, midtrain(config, rows, validation, self.display))

    def _sft(self, chats: TokenStore, validation: TokenStore) -> Finished:
        why = (
            "One conversation a row, and only what the assistant says is trained: to answer, "
            "and to stop."
        )
        self.chapter("Fine-tuning", why)
        recipe = self.recipe
        row_tokens = min(recipe.context_len, PADDED * chats.num_tokens / chats.num_documents)
        config = SftConfig(
            model=f"{self.config.run}/midtrain",
            num_steps=self.budget.num_steps("sft", recipe.sft_rows * row_tokens),
            batch_tokens=recipe.sft_rows * recipe.context_len,
            device_batch_rows=16,  # sorted by length: few of another length beside each
            lr_scale=recipe.sft_lr,
            eval_every=0,
            eval_tokens=EVAL_TOKENS,
            compile="off",
            **self.common,
        )
        return self._told(why, sft(config, chats, validation, self.display))

    def _told(self, why: str, finished: Finished) -> Finished:
        plan = json.loads((self.directory / finished.stage / "plan.json").read_text())
        lines = [
            (name, str(value), plan["reasons"].get(name, ""))
            for name, value in plan.items()
            if name != "reasons"
        ]
        # SFT's padding is computed too, so its targets say nothing of the speed; it is the last.
        num_tokens = sum(row["num_targets"] for row in finished.metrics)
        self.budget.spent(finished.stage, finished.metrics[-1]["elapsed_s"], num_tokens)
        before = self.val_bpb
        self.val_bpb = finished.val_bpb
        self.stages.append(
            StageReport(
                name=STAGE_TITLES[finished.stage],
                why=why,
                plan_lines=lines,
                metrics=finished.metrics,
                val_bpb_before=before,
            )
        )
        return finished

    # ------------------------------------------------------------------------------------- proof

    def _engine(self, finished: Finished) -> Engine:
        """Of what was saved; loaded once for the examination and the report."""
        path = finished.checkpoint
        if path not in self.engines:
            device = best_device()
            loaded = load(
                str(path), home=self.config.home, device=device, dtype=compute_dtype(device)
            )
            self.engines = {path: Engine(loaded.model, loaded.tokenizer)}
        return self.engines[path]

    def _exam(self, finished: Finished) -> Exam | None:
        return take_exam(self._engine(finished), finished.tokenizer) if self.is_world else None

    def _report(
        self,
        finished: Sequence[Finished],
        before: Exam | None,
        after: Exam | None,
        held_out: Sequence[Conversation],
    ) -> Path:
        last = finished[-1]
        engine = self._engine(last)
        samples = sample_conversations(engine, last.tokenizer, held_out, SAMPLE_CONVERSATIONS)
        if self.is_world:
            samples = [*identity_and_memory(engine, last.tokenizer), *samples]
        parameters = count_parameters(last.model.config).total
        facts = [
            ("wall time", format_duration(time.monotonic() - self.start_s)),
            ("parameters", f"{parameters:,}"),
            ("machine", machine_name(best_device())),
            ("Python, PyTorch", f"{platform.python_version()}, {torch.__version__}"),
            *(
                (f"validation bpb after {item.stage}", f"{item.val_bpb:.4f}")
                for item in finished
                if item.val_bpb
            ),
        ]
        path = self.directory / "report.html"
        write_report(
            path,
            Report(
                title=f"nanochat: {self.config.run}",
                stages=self.stages,
                exam_before=before,
                exam_after=after,
                conversations=samples,
                facts=facts,
                commands=[
                    ("talk to it in the terminal", f"nanochat chat {self.config.run}"),
                    ("serve it with a chat page", f"nanochat serve {self.config.run}"),
                    ("continue a text", f"nanochat generate {self.config.run}/pretrain -p TEXT"),
                ],
            ),
        )
        return path


def _to_sample(chats: Chats) -> list[Conversation]:
    """Held-out conversations first; a small collection holds out fewer than are shown."""
    conversations = itertools.chain(*(chats.conversations(part, None) for part in PARTS))
    return list(itertools.islice(conversations, TO_SAMPLE_FROM))
