"""argv -> an exit code.   in: the words of a command line   out: 0, 1, 2 or 130
who calls: the shell

One table names the verbs.  Verb("tokenizer train", ...) is nanochat/cli/tokenizer_train.py, which
has a `Config` (a frozen dataclass: its flags) and a `run(config) -> int`; to add a verb, write that
file and add its line here.  Nothing but the chosen verb is imported: `nanochat --help` is instant.

    0    success
    1    a fault, ours or the machine's, in one line
    2    a user's mistake, in one line: the fact, what was expected, the remedy
    130  Ctrl-C; 143 SIGTERM, 138 SIGUSR1 where training was stopped by them, saved
Read next: any other file here; common/config.py (how Config becomes flags).
"""

import importlib
import keyword
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import nanochat
from nanochat.common.config import nearest, parse
from nanochat.common.env import is_debug
from nanochat.common.errors import ConfigError, NanochatError, Stopped

__all__ = ["VERBS", "Verb", "main"]


@dataclass(frozen=True, slots=True)
class Verb:
    """One door."""

    name: str
    """What is typed: one word, or two."""
    group: str
    """The heading it stands under in the help."""
    summary: str
    """One line of help."""

    @property
    def module(self) -> str:
        """The module that has its Config and run; `import` is a word of Python's own."""
        name = self.name.replace(" ", "_")
        return f"nanochat.cli.{name}_" if keyword.iskeyword(name) else f"nanochat.cli.{name}"


VERBS = (
    Verb("demo", "start here", "the whole story in minutes, then a chat in the browser"),
    Verb("doctor", "start here", "what this machine can do, what is missing, what to do about it"),
    Verb("tokenizer train", "the vocabulary", "learn a vocabulary from text files"),
    Verb("tokenizer encode", "the vocabulary", "show how a text is cut into tokens"),
    Verb("tokenizer decode", "the vocabulary", "turn tokens back into text"),
    Verb("tokenizer import", "the vocabulary", "turn another program's vocabulary into ours"),
    Verb("tokenizer export", "the vocabulary", "write it for Hugging Face or tiktoken"),
    Verb("data list", "data", "which data sets can be had by name, and which are here"),
    Verb("data download", "data", "load one: a name, hf:org/dataset, an address"),
    Verb("data show", "data", "what training would find in files"),
    Verb("data prepare", "data", "clean, without duplicates, tokenized, shuffled; on many cores"),
    Verb("pretrain", "training", "train a base model on text"),
    Verb("midtrain", "training", "teach a base model the shape of conversations"),
    Verb("sft", "training", "fine-tune on conversations, a row each, the assistant's words only"),
    Verb("generate", "using a model", "continue a text, or answer one question"),
    Verb("chat", "using a model", "talk with a model in the terminal"),
    Verb("serve", "using a model", "a chat page and an OpenAI-compatible API"),
    Verb("eval", "examining a model", "its scores on benchmarks and on tasks of your own"),
    Verb("compare", "examining a model", "which differences between evaluations are real"),
    Verb("show", "models on the disk", "config, plan, metrics, and where a model came from"),
    Verb("verify", "models on the disk", "check every file of a model and what is in it"),
    Verb("import", "models on the disk", "a run of karpathy/nanochat's or Hugging Face's files"),
    Verb("export", "models on the disk", "a directory for Hugging Face's transformers"),
    Verb("bench data", "measuring", "text to tokens, beside karpathy/nanochat's loader"),
    Verb("bench decode", "measuring", "decoding speed, beside karpathy/nanochat's and llama.cpp's"),
    Verb("bench formats", "measuring", "what bfloat16, int8 and int4 cost in bits per byte"),
    Verb("bench serve", "measuring", "what many users notice of a server, beside peers' servers"),
    Verb(
        "bench train", "measuring", "training speed, beside karpathy/nanochat's where it is at hand"
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command; every exception ends here."""
    is_verbose = False
    try:
        is_verbose = is_debug()
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()  # a pipe that broke should be noticed here, not at exit
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except SystemExit as stop:  # a library that ends the process has said why
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 1
        if is_verbose:
            traceback.print_exc()
        print(f"nanochat: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, Stopped):
            return error.exit_code
        return 2 if isinstance(error, NanochatError) else 1


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"nanochat {nanochat.__version__}")
        return 0
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        raise ConfigError(
            f"unknown flag {words[0]}: a verb comes first, nanochat --help lists them"
        )
    verb = _find_verb(words)
    if verb is None:
        print(_help(words[0] if words and not words[0].startswith("-") else ""))
        return 0
    module = importlib.import_module(verb.module)
    argv = words[len(verb.name.split()) :]
    try:
        config = parse(module.Config, argv, prog=f"nanochat {verb.name}")
    except SystemExit:  # --help was printed
        return 0
    code: int = module.run(config)
    return code


def _find_verb(words: Sequence[str]) -> Verb | None:
    """The verb these words begin with; None when they are a family (`tokenizer`) or --help.

    Raises: ConfigError for anything else, naming the nearest verb.
    """
    typed = [word for word in words[:2] if not word.startswith("-")]
    for length in (2, 1):
        name = " ".join(words[:length])
        if verb := next((verb for verb in VERBS if verb.name == name), None):
            return verb
    family = [verb.name for verb in VERBS if typed and verb.name.startswith(typed[0] + " ")]
    if not typed or (family and len(typed) == 1):
        return None
    name = " ".join(typed) if family else typed[0]
    known = family or [verb.name for verb in VERBS]
    raise ConfigError(f"unknown verb {name!r}{nearest(name, known)} (nanochat --help lists them)")


def _help(family: str) -> str:
    """The verbs under their headings; only those of one family (`tokenizer`) if it is given."""
    shown = [verb for verb in VERBS if not family or verb.name.startswith(family + " ")]
    width = max(len(verb.name) for verb in shown)
    lines = [f"usage: nanochat {family + ' ' if family else ''}VERB [OPTIONS]", ""]
    if not family:
        lines += ["Text in at one end, a chat out at the other.", ""]
    for group in dict.fromkeys(verb.group for verb in shown):
        lines.append(group)
        lines += [f"  {verb.name:{width}}  {verb.summary}" for verb in shown if verb.group == group]
        lines.append("")
    lines.append(
        "nanochat VERB --help explains one of them; nanochat --version says which this is."
    )
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, NanochatError):
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}:{last.lineno}; "
        "NANOCHAT_LOG=debug shows how it came to this)"
    )


def _reader_left() -> bool:
    """Whether it is our own output that nobody reads any more (`nanochat ... | head`).

    If so, what is still buffered goes nowhere, and Python does not complain at exit.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # no file behind it
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors and hang-ups are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
