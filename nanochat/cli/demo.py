"""nanochat demo   in: nothing, or text and conversations   out: a chat, and how it came to be
who calls: cli.main

Read next: demo_story.py (the stages), train/ (each of them), evals/report.py (the page it writes).
"""

import json
import time
from dataclasses import dataclass

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """The whole story on this machine in minutes: text, tokenizer, pretraining, mid-training, SFT,
    then a chat.

    Without --text and --chats it needs no file and no network: the text is written by the built-in
    world.
    """

    text: tuple[str, ...] = ()
    """Your own text: .txt, .md, .jsonl, .json, .parquet (plain, .gz, .zst), folders, globs."""
    chats: tuple[str, ...] = ()
    """Your own conversations: .jsonl, .json (plain, .gz, .zst), folders, globs."""
    minutes: float | None = None
    """About how long it may take, report included. None: 5.6 for the built-in world, 10 for your
    own text."""
    run: str = "demo"
    """Name of the run directory; an earlier demo of this name is replaced, any other run is not."""
    serve: bool = True
    """End in a chat page; --no-serve for scripts."""
    host: str = "127.0.0.1"
    """The address the page is served at."""
    port: int = 8000
    """The port of it; 0 takes any that is free."""
    open: bool = True
    """Open the page in a browser."""
    seed: int = 0
    """Equal seeds tell the same story."""

    def __post_init__(self) -> None:
        if bool(self.text) != bool(self.chats):
            given, missing = ("text", "chats") if self.text else ("chats", "text")
            raise ConfigError(
                f"--{given} is given without --{missing}: your own story needs both, or neither"
            )
        if self.minutes is not None and not 0.1 <= self.minutes <= 10_000:
            raise ConfigError(f"minutes is {self.minutes:g}, expected 0.1 to 10000")


def run(config: Config) -> int:
    """0 once the story is told and the chat, if it was asked for, has ended."""
    from nanochat.cli.demo_story import tell

    start_s = time.monotonic()
    story = tell(config)
    result = {
        "wall_s": round(time.monotonic() - start_s, 1),
        "held_out_correct": story.num_correct,
        "held_out_total": story.num_asked,
        "run": config.run,
        "report": str(story.report),
    }
    if config.json:
        print(json.dumps(result), flush=True)
    if config.serve:
        from nanochat.cli import serve

        return serve.run(
            serve.Config(
                model=config.run,
                home=config.home,
                host=config.host,
                port=config.port,
                open=config.open,
            )
        )
    return 0
