"""A server answers a chat.   in: the address of an OpenAI-compatible API   out: a Backend
who calls: chat.py   (imports no torch)

Everything a server sends is untrusted: its words reach the screen without control characters, its
frames are checked, and a stream that ends early is an error, not an answer.
Read next: chat_sse.py (frames), chat_talk.py (Backend), server/app.py (the server we write).
"""

import ipaddress
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from nanochat.cli.chat_sse import EventParser
from nanochat.cli.chat_talk import Piece, Reply, Settings
from nanochat.cli.terminal import neutralize
from nanochat.common.errors import ConfigError, EngineError, Overloaded, RequestTooLong
from nanochat.common.messages import Conversation, Message
from nanochat.engine.request import SamplingParams
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = ["RemoteBackend", "api_base"]

# A server may read a long prompt, or have others before us, for minutes.
TIMEOUT = httpx.Timeout(30.0, connect=10.0, read=600.0)
MAX_ERROR_BYTES = 2**16
MAX_SHOWN = 300  # characters of a server's error message
NOT_OPENAI = "expected an OpenAI-compatible API there, such as http://127.0.0.1:8000/v1"


class RemoteBackend:
    """The model that answers at `url`: the one named, or the first that the server lists.

    Raises: ConfigError for an address that is none, EngineError if the server does not answer or
            has no model.
    """

    defaults: SamplingParams | None = None

    def __init__(self, url: str, model: str = "", api_key: str | None = None) -> None:
        base = api_base(url)
        self.place = neutralize(str(base.copy_with(username=None, password=None)))
        self._client = httpx.Client(
            timeout=TIMEOUT,
            headers={} if api_key is None else {"Authorization": f"Bearer {_checked_key(api_key)}"},
            # A proxy of the environment cannot reach this machine's own addresses.
            trust_env=not _is_loopback(base.host),
        )
        self._base = str(base).rstrip("/")
        try:
            self.models = self._list_models(is_needed=not model)
            self._model = model or self.models[0]
            self.name = neutralize(self._model)
            self.context_len = self._find_context_len()
        except BaseException:
            self.close()
            raise

    def stream(
        self, conversation: Conversation, settings: Settings, reply: Reply
    ) -> Generator[Piece, None, None]:
        """The pieces of the answer; closing closes the connection.

        Raises: RequestTooLong, Overloaded, EngineError in the server's words.
        """
        said: list[str] = []
        try:
            with self._posted(self._body(conversation, settings)) as response:
                for frame in _frames(response):
                    for text in _read_frame(frame, reply):
                        said.append(text)
                        reply.has_begun = True
                        yield Piece("text", text)
            if reply.finish_reason is None:
                raise EngineError(
                    "the server ended the answer without saying that it is complete: what came is "
                    "kept"
                )
            reply.has_begun = True
            yield Piece("text", "")  # an answer without words is one too
        finally:
            reply.message = Message("assistant", "".join(said))

    def count(self, conversation: Conversation) -> None:
        """Not known here: the server tells with each answer."""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _body(self, conversation: Conversation, settings: Settings) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [_to_openai(message) for message in conversation],
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings.given(),
        }

    @contextmanager
    def _posted(self, body: Mapping[str, Any]) -> Iterator[httpx.Response]:
        with self._told():
            url = f"{self._base}/chat/completions"
            with self._client.stream("POST", url, json=body) as response:
                self._check(response)
                yield response

    def _list_models(self, *, is_needed: bool) -> list[str]:
        """The names the server tells; of a server that has no such list, none."""
        with self._told(), self._client.stream("GET", f"{self._base}/models") as response:
            if response.status_code in (404, 405, 501) and not is_needed:
                self._entries: list[Any] = []
                return []
            self._check(response)
            entries = _member(_parsed(_limited(response)), "data")
        if not isinstance(entries, list):
            raise EngineError(f"{self.place}/models is no list of models: {NOT_OPENAI}")
        self._entries = [entry for entry in entries if isinstance(_member(entry, "id"), str)]
        if is_needed and not self._entries:
            raise EngineError(f"{self.place} serves no model, expected at least one")
        return [str(entry["id"]) for entry in self._entries]

    def _find_context_len(self) -> int | None:
        """As the servers we know tell it; ours does at /health."""
        for entry in self._entries:
            if entry["id"] == self._model:
                for name in ("max_model_len", "context_length", "context_len"):
                    if _is_count(entry.get(name)):
                        return int(entry[name])
                if entry.get("owned_by") == "nanochat":
                    return self._health_context_len()
        return None

    def _health_context_len(self) -> int | None:
        with self._told():
            url = f"{self._base.removesuffix('/v1')}/health"
            with self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    return None
                value = _member(_parsed(_limited(response)), "context_len")
        return value if _is_count(value) else None

    # -------------------------------------------------------------------------------- errors

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Faults of the connection in one line."""
        try:
            yield
        except httpx.ConnectTimeout:
            raise EngineError(f"{self.place} does not answer: no connection in 10 s") from None
        except httpx.ConnectError as error:
            raise EngineError(
                f"cannot reach {self.place} ({_shown(str(error))}): is the server running there?"
            ) from None
        except httpx.TimeoutException:
            raise EngineError(f"{self.place} has not sent a word for 10 minutes") from None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            raise EngineError(
                f"the connection to {self.place} broke ({_shown(str(error))}): try again"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self.place}: {_shown(str(error) or repr(error))}") from None

    def _check(self, response: httpx.Response) -> None:
        """Nothing for a success.

        Raises: what the status and OpenAI's error body say.
        """
        status = response.status_code
        if status == 200:
            return
        if 300 <= status < 400:
            target = _shown(response.headers.get("Location", "nowhere"))
            raise EngineError(f"{self.place} has moved to {target}: pass that address as --url")
        body = _limited(response)
        told = _error_of(body)
        if told is None and status == 404:
            raise EngineError(f"{self.place} answers 404 Not Found: {NOT_OPENAI}")
        message, code = told or (_shown(body.decode("utf-8", "replace")), "")
        if status in (401, 403):
            raise ConfigError(
                f"{self.place} refuses the key ({status}: {message}): set NANOCHAT_API_KEY, or "
                "pass --api-key-env NAME"
            )
        if status == 404:
            known = ", ".join(neutralize(name) for name in getattr(self, "models", [])[:20])
            has = f" (it has {known})" if known else ""
            raise ConfigError(f"{self.place}: {message}{has}")
        if status == 429:
            wait_s = _retry_after_s(response)
            when = "try again later" if wait_s is None else f"try again in {wait_s} s"
            raise Overloaded(f"{self.place} is busy (429: {message}): {when}", wait_s or 1)
        if code == "context_length_exceeded":
            raise RequestTooLong(message)
        raise EngineError(f"{self.place} answers {status}: {message or response.reason_phrase}")


def api_base(url: str) -> httpx.URL:
    """The address under which /chat/completions is; /v1 is added to one that names no path.

    Raises: ConfigError for what is no address of a web server.
    """
    try:
        base = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url is {url!r}, which is no address ({error})") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise ConfigError(f"--url is {url!r}, expected http://host:port/v1")
    if base.path in ("", "/"):
        base = base.copy_with(path="/v1")
    return base.copy_with(query=None, fragment=None)


def _checked_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the API key has spaces, control or other characters that no header has")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _to_openai(message: Message) -> dict[str, str]:
    """A message as any server reads it: of a turn that used the calculator, the words."""
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content if part.kind == "text")
    return {"role": message.role, "content": content}


# ------------------------------------------------------------------------------- what is sent


def _frames(response: httpx.Response) -> Iterator[Any]:
    """The JSON of each event up to [DONE]; of a server that does not stream, the one answer."""
    if "event-stream" not in response.headers.get("Content-Type", ""):
        yield _parsed(_limited(response, 2**24))
        return
    parser = EventParser()
    for data in response.iter_bytes():
        for event in parser.feed(data):
            if event.strip() == "[DONE]":
                return
            yield _parsed(event)
    for event in parser.close():
        if event.strip() != "[DONE]":
            yield _parsed(event)


def _read_frame(frame: Any, reply: Reply) -> Iterator[str]:
    """The text in a frame; what else it says goes into `reply`.

    Raises: EngineError for an error in mid-stream, RequestTooLong if that is what it says.
    """
    if not isinstance(frame, dict):
        raise EngineError(f"the server sends {_shown(repr(frame))}: {NOT_OPENAI}")
    if told := _error_of(frame):
        message, code = told
        if code == "context_length_exceeded":
            raise RequestTooLong(message)
        raise EngineError(f"the server broke the answer off: {message}")
    usage = frame.get("usage")
    if isinstance(usage, dict):
        reply.num_prompt_tokens = _count_or_none(usage.get("prompt_tokens"))
        reply.num_tokens = _count_or_none(usage.get("completion_tokens"))
    choices = frame.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return
    said = choices[0].get("delta") or choices[0].get("message")
    text = _member(said, "content")
    if isinstance(text, str) and text:
        yield replace_surrogates(text)
    reason = choices[0].get("finish_reason")
    if isinstance(reason, str):
        reply.finish_reason = neutralize(reason)


def _limited(response: httpx.Response, limit_bytes: int = MAX_ERROR_BYTES * 16) -> bytes:
    body = b""
    for data in response.iter_bytes():
        body += data
        if len(body) > limit_bytes:
            raise EngineError(f"the server's answer is larger than {limit_bytes} bytes")
    return body


def _parsed(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        raise EngineError(f"the server sends {_shown(text)!r}: {NOT_OPENAI}") from None


def _error_of(body: Any) -> tuple[str, str] | None:
    """Message and code of OpenAI's error body; None if it is not one."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return None
    error = _member(body, "error")
    if isinstance(error, str):
        return _shown(error), ""
    if not isinstance(error, dict):
        return None
    return _shown(str(error.get("message") or "no reason given")), str(error.get("code") or "")


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _count_or_none(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _shown(text: str) -> str:
    """What a server says, on one line that cannot steer a terminal."""
    text = neutralize(" ".join(replace_surrogates(text).split()))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _retry_after_s(response: httpx.Response) -> int | None:
    value = response.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() and len(value) < 6 else None
