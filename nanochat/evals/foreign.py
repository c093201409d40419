"""A model of transformers.   in: a directory, samples   out: verdicts, answers
who calls: runner.py, through cli/eval.py   (imports torch and transformers when opened)

For models that are not ours: whole texts, padded on the right, one forward pass a sample.  They
know nothing of our calculator, which is noted of every answer to a task that offers it.
Read next: examinee.py (ours, many times faster), checkpoint/huggingface.py (which models are ours).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.checkpoint.huggingface import MODEL_TYPES
from nanochat.common.errors import CheckpointError, ConfigError, EvalError
from nanochat.common.files import read_json, sha256_of_file
from nanochat.common.messages import Conversation, conversation_to_json
from nanochat.evals.examinee import Asking, bits_verdict, cut_prompt, windows
from nanochat.evals.scorers import Encoder, Scored, prepare, verdict
from nanochat.evals.task import Kind, Mode, Sample, Verdict
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = ["ForeignExaminee", "is_foreign"]


def is_foreign(path: Path) -> bool:
    """Whether a directory holds a model of transformers that is not ours."""
    if not (path / "config.json").is_file() or (path / "manifest.json").is_file():
        return False
    config = read_json(path / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    return isinstance(kind, str) and kind not in MODEL_TYPES


class ForeignExaminee:
    """A causal language model that transformers loads; no code of its own is run."""

    def __init__(self, path: Path, *, device: str | None = None, dtype: str = "float32") -> None:
        """Raises: ConfigError without transformers; CheckpointError where it cannot load it."""
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ConfigError(
                f"{path} is a model for transformers, which is not installed: "
                "pip install 'nanochat[interop]'"
            ) from None
        from nanochat.common.device import best_device

        self._torch = torch
        self.device = best_device(device)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"transformers cannot load {path}: {error}") from error
        self._model = model.to(self.device).eval()
        self.name = path.name
        self.model_hash = _content_hash(path)
        self.service = ""
        self.settings: Mapping[str, Any] = {"dtype": dtype, "library": "transformers"}
        self.chunk_tokens = 4096
        bos = self._tokenizer.bos_token_id
        bos = self._tokenizer.eos_token_id if bos is None else bos
        if bos is None:
            raise CheckpointError(f"{path}: its tokenizer has no token to begin a text with")
        self.encoder = Encoder(
            bos=int(bos),
            encode_batch=lambda texts: [self._encode(text) for text in texts],
            render=self._render,
            context_len=int(getattr(model.config, "max_position_embeddings", 0) or 2048),
            can_slide=False,
        )

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        """The verdicts, in order."""
        if kind == "bits_per_byte":
            return [self._bits(sample) for sample in samples]
        return [
            verdict(each, self._scored(each.texts, each.places))
            for each in prepare(samples, kind, mode, self.encoder)
        ]

    def answers(
        self, samples: Sequence[Sample], asking: Asking
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(index of a sample, what was written), one sample after another."""
        torch = self._torch
        for index, sample in enumerate(samples):
            prompt = self._prompt(sample, asking)
            if asking.tools:
                asking.note(sample.sample_id, "no_tools")
            torch.manual_seed(asking.seed)
            choice: dict[str, Any] = {"do_sample": False}
            if asking.temperature:
                choice = {
                    "do_sample": True,
                    "temperature": asking.temperature,
                    "top_k": asking.top_k or 0,
                }
            tokens = torch.tensor([prompt], device=self.device)
            with torch.inference_mode():
                written = self._model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=min(asking.max_tokens, self.encoder.context_len - len(prompt)),
                    num_return_sequences=asking.num_samples,
                    pad_token_id=self.encoder.bos,
                    **choice,
                )
            texts = self._tokenizer.batch_decode(
                written[:, len(prompt) :], skip_special_tokens=True
            )
            yield index, tuple(_cut(text, asking.stop) for text in texts)

    def _prompt(self, sample: Sample, asking: Asking) -> list[int]:
        """The tokens of a question; only one that leaves no room at all loses its beginning."""
        if isinstance(sample.prompt, str):
            num_kept, prompt = 1, [self.encoder.bos, *self._encode(sample.prompt)]
        else:
            num_kept, prompt = 2, self._render(sample.prompt)
        if len(prompt) < self.encoder.context_len:
            return prompt
        asking.note(sample.sample_id, "cut")
        return cut_prompt(prompt, num_kept, self.encoder.context_len, asking.max_tokens)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False))

    def _render(self, conversation: Conversation) -> list[int]:
        if not self._tokenizer.chat_template:
            raise EvalError(f"{self.name} has no chat template: chat tasks cannot be asked")
        return self._encode(
            self._tokenizer.apply_chat_template(
                conversation_to_json(conversation), add_generation_prompt=True, tokenize=False
            )
        )

    def _scored(self, texts: Sequence[Sequence[int]], places: Sequence[int]) -> list[Scored]:
        """One padded forward pass for all texts of a sample."""
        torch = self._torch
        longest = max(len(text) for text in texts)
        padded = [[*text, *[self.encoder.bos] * (longest - len(text))] for text in texts]
        with torch.inference_mode():
            logits = self._model(torch.tensor(padded, device=self.device)).logits
        scored = []
        for row, text, place in zip(logits, texts, places, strict=True):
            logprobs_NV = row[place - 1 : len(text) - 1].float().log_softmax(-1)
            targets_N = torch.tensor(text[place:], device=self.device, dtype=torch.long)
            top_N2, best_N2 = logprobs_NV.topk(2)
            scored.append(
                Scored(
                    logprobs_NV.gather(1, targets_N[:, None])[:, 0].tolist(),
                    text[place:],
                    best_N2[:, 0].tolist(),
                    (top_N2[:, 0] - top_N2[:, 1]).tolist(),
                )
            )
        return scored

    def _bits(self, sample: Sample) -> Verdict:
        text = replace_surrogates(str(sample.prompt))
        tokens = self._encode(text)
        nats = 0.0
        for part in windows(tokens, self.encoder.context_len - 1):
            [scored] = self._scored([[self.encoder.bos, *part]], [1])
            nats -= sum(scored.logprobs)
        return bits_verdict(sample, nats, len(text.encode()), len(tokens))


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _content_hash(path: Path) -> str:
    """Of every file's name and content, so that other weights are another model."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    entries = [[file.name, sha256_of_file(file)] for file in files]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
