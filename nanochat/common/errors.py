"""The exception tree.   in: a fact   out: one clear line for the user   who calls: every room

    NanochatError
      ConfigError(ValueError)        a setting that is wrong, unknown or contradicts another
      DataError(ValueError)          text or conversations that are missing, empty or malformed
      TokenizerError(ValueError)     a vocabulary that cannot be trained or read, an unknown token
      CheckpointError(RuntimeError)  weights that are absent, incomplete, or belong to another model
      TrainingError(RuntimeError)    a run that cannot go on
      Stopped(RuntimeError)          a run that was asked to end, and has saved
      EngineError(RuntimeError)      a request that cannot be served
        RequestTooLong               the prompt does not fit the context
        Overloaded                   the queue is full
        Unavailable                  nothing is served now: loading, or about to stop
        DeadlineExceeded             the answer took longer than it may
        Overflowed                   the model's numbers are none any more
        SchemaError                  a JSON schema that cannot be followed to the answer's end
        Aborted                      the answer was given up
          ClientLeft                 because nobody waits for it any more
      EvalError(RuntimeError)        a task that cannot be scored
      SandboxError(RuntimeError)     model-written code that cannot be run behind walls

A message states the fact with its values, what was expected, and the remedy:
`prompt has 2310 tokens but the context is 2048: shorten it, or drop --strict`.
To add one: choose the category a caller would catch, inherit the standard type that fits, name it
in `__all__`, and keep its arguments to one message so that it survives pickling.
Read next: cli/main.py (which turns these into exit code 2), server/errors.py (HTTP bodies).
"""

__all__ = [
    "Aborted",
    "CheckpointError",
    "ClientLeft",
    "ConfigError",
    "DataError",
    "DeadlineExceeded",
    "EngineError",
    "EvalError",
    "NanochatError",
    "Overflowed",
    "Overloaded",
    "RequestTooLong",
    "SandboxError",
    "SchemaError",
    "Stopped",
    "TokenizerError",
    "TrainingError",
    "Unavailable",
]


class NanochatError(Exception):
    """Everything this package raises on purpose; its text is meant for the user."""


class ConfigError(NanochatError, ValueError):
    """A setting that is wrong, unknown, or contradicts another."""


class DataError(NanochatError, ValueError):
    """Text or conversations that are missing, empty or malformed."""


class TokenizerError(NanochatError, ValueError):
    """A vocabulary that cannot be trained or read, or a token outside it."""


class CheckpointError(NanochatError, RuntimeError):
    """Weights that are absent, incomplete, or belong to another model."""


class TrainingError(NanochatError, RuntimeError):
    """A run that cannot go on."""


class Stopped(NanochatError, RuntimeError):
    """A run that was asked to end by a signal, and has saved; no fault."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """What the shell expects after that signal: 128 and its number."""


class EngineError(NanochatError, RuntimeError):
    """A request that cannot be served."""


class RequestTooLong(EngineError):
    """The prompt does not fit the context; the API answers context_length_exceeded."""


class Overloaded(EngineError):
    """The queue is full; the API answers 429."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When asking again may help."""


class Unavailable(EngineError):
    """Nothing is served now: an engine is loading, or the server is about to stop; the API answers
    503."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When asking again may help."""


class DeadlineExceeded(EngineError):
    """The answer took longer than it may; the API answers 504."""


class Overflowed(EngineError):
    """The model's numbers are none any more; asking again gives the same."""


class SchemaError(EngineError):
    """What a JSON schema allows has grown too large, or takes too long, in the middle of an answer;
    the API answers 400."""


class Aborted(EngineError):
    """The answer was given up before it was complete."""


class ClientLeft(Aborted):
    """The client went away before the answer was complete; logged as 499, and read by nobody."""


class EvalError(NanochatError, RuntimeError):
    """A task that cannot be scored."""


class SandboxError(NanochatError, RuntimeError):
    """Code of a model that cannot be run here, or not behind every wall."""
