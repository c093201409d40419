"""An engine that gives the answers it is handed.   in: prompts' texts -> answers   out: events"""

from collections.abc import Callable, Sequence

from nanochat.engine.request import Request, TokenEvent
from nanochat.tokenizer.tokenizer import Tokenizer

Script = Callable[[str], str | list[int]]


class ScriptedEngine:
    """Answers the text of a prompt, special tokens included, by `script`: words, which end as they
    should, or tokens as they are.  `requests` holds one list for every call."""

    def __init__(self, tokenizer: Tokenizer, script: Script, context_len: int = 1000) -> None:
        self.tokenizer, self.script, self.context_len = tokenizer, script, context_len
        self.requests: list[list[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[list[TokenEvent]]:
        self.requests.append(list(requests))
        return [self._events(request) for request in requests]

    def _events(self, request: Request) -> list[TokenEvent]:
        said = self.script(self.tokenizer.decode(list(request.prompt_tokens)))
        if isinstance(said, str):
            said = [*self.tokenizer.encode(said), self.tokenizer.special("<|assistant_end|>")]
        return [
            TokenEvent(request_id=request.request_id, token=token, text="", logprob=-0.5)
            for token in said[: request.sampling.max_tokens]
        ]
