"""Requests -> answers that may begin.   in: Request   out: Answer, Scoring   who calls: engine.py

All that can be wrong with a request is found here, before anything is queued; in any thread.  With
a schema that takes some milliseconds, at most half a second: not for an event loop.
Read next: answer.py, request.py (what is checked when a request is made).
"""

import itertools
import threading
from collections.abc import Callable, Sequence

import torch

from nanochat.common.errors import EngineError, RequestTooLong
from nanochat.engine.answer import Answer, Deliver
from nanochat.engine.constraint import Constraint, JsonGrammar
from nanochat.engine.groups import Group
from nanochat.engine.request import BeyondContext, Request
from nanochat.engine.sampling import Chooser
from nanochat.engine.scheduler import Scheduler
from nanochat.engine.scoring import Likelihood, Scoring
from nanochat.engine.sequence import Sequence as Row
from nanochat.engine.tools import ToolUse
from nanochat.model.config import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["MAX_SLIDE_CONTEXTS", "Admission"]

# karpathy/nanochat's rotary table ends at ten contexts; past it there is nothing to agree with.
MAX_SLIDE_CONTEXTS = 10


class Admission:
    """Makes what an engine works on."""

    def __init__(
        self,
        config: GPTConfig,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        device: torch.device,
    ) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._scheduler, self._device = scheduler, device
        self._special_tokens = frozenset(tokenizer.special_tokens.values())
        self._grammar: JsonGrammar | None = None  # made when it is first needed
        self._lock = threading.Lock()  # guards making the grammar, not what it compiles
        self._numbers = itertools.count()

    def answer(self, request: Request, deliver: Deliver) -> Answer:
        """The first answer to a request.

        Raises: TokenizerError for a token outside the vocabulary, RequestTooLong with the numbers,
                ConfigError for a schema.
        """
        request.check_vocabulary(self._config.vocab_size)
        tokens = list(request.prompt_tokens) or [self._tokenizer.bos]
        is_sliding = request.beyond_context == "slide"
        longest = self._config.context_len * (MAX_SLIDE_CONTEXTS if is_sliding else 1)
        asks = request.prompt_logprobs is not None
        if len(tokens) + (not asks) > longest:  # what is scored may leave no room for an answer
            raise RequestTooLong(
                f"the prompt has {len(tokens)} tokens but the context is {longest}, answer "
                "included: shorten the prompt"
            )
        # What a tool says comes on top of what was asked for.
        limit = longest if request.tools else len(tokens) + request.sampling.max_tokens
        limit = min(longest, limit)
        self._scheduler.check(limit)
        sequence = Row(request.request_id, tokens, limit, max_shared=0 if asks else None)
        constraint = None if request.schema is None else self._constraint(request.schema)
        return self._made(request, sequence, deliver, len(tokens), constraint)

    def further(self, answer: Answer, sequence: Row) -> Answer:
        """One more answer to the same prompt, while the first has no token yet."""
        constraint = None if answer.constraint is None else answer.constraint.another()
        return self._made(answer.request, sequence, answer.deliver, answer.num_prompt, constraint)

    def scoring(
        self, tokens: Sequence[int], place: int, done: Callable[[Likelihood | Exception], None]
    ) -> Scoring:
        """The likelihood of a text from a place on.

        Raises: EngineError for a place that is not in the text, TokenizerError, RequestTooLong.
        """
        if not 1 <= place < len(tokens):
            raise EngineError(
                f"a text of {len(tokens)} tokens scored from place {place}: expected 1 to "
                f"{len(tokens) - 1}"
            )
        request = Request(request_id=f"score {next(self._numbers)}", prompt_tokens=tuple(tokens))
        self.check_text(request)
        self._scheduler.check(len(tokens))
        row = Row(request.request_id, list(tokens), len(tokens), max_shared=place - 1)
        return Scoring(row, done)

    def group(self, group: Group, beyond_context: BeyondContext) -> None:
        """Whether all texts of a group can be scored.

        Raises: as `scoring`; a place may be a text's end, which scores nothing.
        """
        for tokens, place in group:
            if len(tokens) < 2 or not 1 <= place <= len(tokens):
                raise EngineError(
                    f"a text of {len(tokens)} tokens scored from place {place}: expected at least "
                    "2 tokens, and 1 to their number"
                )
            self.check_text(
                Request(
                    request_id="group",
                    prompt_tokens=tuple(tokens),
                    beyond_context=beyond_context,
                )
            )

    def check_text(self, request: Request) -> None:
        """Whether a text is of this vocabulary and within reach.

        Raises: TokenizerError, RequestTooLong.
        """
        request.check_vocabulary(self._config.vocab_size)
        is_sliding = request.beyond_context == "slide"
        longest = self._config.context_len * (MAX_SLIDE_CONTEXTS if is_sliding else 1)
        if len(request.prompt_tokens) > longest:
            raise RequestTooLong(
                f"the text has {len(request.prompt_tokens)} tokens but the context is {longest}: "
                "shorten it"
            )

    def _made(
        self,
        request: Request,
        sequence: Row,
        deliver: Deliver,
        num_prompt: int,
        constraint: Constraint | None,
    ) -> Answer:
        chooser = Chooser(
            request.sampling,
            sequence.tokens[:num_prompt],
            vocab_size=self._config.vocab_size,
            sample=sequence.sample,
            device=self._device,
        )
        return Answer(
            request=request,
            sequence=sequence,
            deliver=deliver,
            chooser=chooser,
            decoder=self._tokenizer.stream_decoder(),
            special_tokens=self._special_tokens,
            num_prompt=num_prompt,
            tools=ToolUse(self._tokenizer) if request.tools else None,
            constraint=constraint,
        )

    def _constraint(self, schema: str) -> Constraint:
        with self._lock:
            if self._grammar is None:
                end = self._tokenizer.special("<|assistant_end|>")
                self._grammar = JsonGrammar(self._tokenizer, end)
            grammar = self._grammar
        return grammar.start(schema)
