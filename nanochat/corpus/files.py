"""Paths -> bytes, lines, records.   in: files, folders, globs   out: their content in order
who calls: documents, conversations, split

Reads .gz, .zst and .bz2 as it goes.  Nothing is loaded whole but one line, one JSON value or one
row group at a time.  What is wrong is said with the file and the line, item or byte.
Read next: tables.py (rows), places.py (names), documents.py and conversations.py (the meaning).
"""

import bz2
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from nanochat.common.errors import DataError
from nanochat.common.files import sha256_of_file

__all__ = [
    "Paths",
    "ReadReport",
    "Record",
    "corpus_fingerprint",
    "find_files_with",
    "format_of",
    "not_utf8",
    "plain_errors",
    "read_chunks",
    "read_lines",
    "read_records",
]

CHUNK_BYTES = 1 << 20
ZSTD_WINDOW_BYTES = 1 << 31  # of `zstd --long=31`, which large dumps use; taken if a file asks
COMPRESSIONS = (".gz", ".zst", ".bz2")
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
TABLES = ("csv", "parquet", "arrow")
NOT_PACKED = ("parquet", "arrow")  # they pack their columns themselves
NOT_SPACE = re.compile(r"[^ \t\r\n]")
DECODER = json.JSONDecoder()

Paths = str | Path | Iterable[str | Path]


class Record(NamedTuple):
    """A value from a JSON file or a row of a table, and how to name its place in an error."""

    value: Any
    where: str


@dataclass(kw_only=True)
class ReadReport:
    """What reading found, filled while it reads: nothing is left out or changed in silence."""

    num_kept: int = 0
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    """For each file the shapes of its records."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was changed or left out, by reason."""

    def lines(self) -> list[str]:
        """What to show the user: a line for each file's shapes, then one for each reason."""
        files = [
            f"{path}: " + ", ".join(f"{count:,} {shape}" for shape, count in shapes.items())
            for path, shapes in self.shapes.items()
        ]
        return files + [f"{count:,} {reason}" for reason, count in sorted(self.counts.items())]


def format_of(path: Path) -> str | None:
    """text, lines, json, csv, parquet or arrow, by the name without .gz, .zst or .bz2; or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        found = FORMATS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if found in NOT_PACKED else found
    return FORMATS.get(suffixes[-1]) if suffixes else None


def find_files_with(formats: Sequence[str], paths: Paths) -> list[Path]:
    """The files of these formats that the paths name, each once.

    The order is that of the paths; a folder (with those inside it, hidden files left out) and a
    glob give their files sorted by name.
    Raises: DataError for a missing path, an unknown suffix, a folder without such files.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no path was given: expected a file, a folder or a glob")
    found: dict[Path, None] = {}
    for path in given:
        found.update(dict.fromkeys(_files_at(Path(path).expanduser(), formats)))
    return list(found)


def _files_at(path: Path, formats: Sequence[str]) -> list[Path]:
    if path.is_dir():
        inside = sorted(
            file
            for file in path.rglob("*")
            if format_of(file) in formats
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not inside:
            raise DataError(f"{path} has no file to read, expected {_suffixes(formats)}")
        return inside
    if path.exists():
        if format_of(path) not in formats:
            raise DataError(f"{path}: the suffix is unknown, expected {_suffixes(formats)}")
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not matches:
        raise DataError(f"{path} does not exist: expected a file, a folder or a glob that matches")
    return [file for match in matches for file in _files_at(match, formats)]


def _suffixes(formats: Sequence[str]) -> str:
    known = [suffix for suffix, form in FORMATS.items() if form in formats]
    packed = ", ".join(COMPRESSIONS)
    return f"one of {', '.join(known)} (but for .parquet and .arrow also with {packed})"


def corpus_fingerprint(
    files: Iterable[Path], sum_of: Callable[[Path], str] = sha256_of_file
) -> str:
    """SHA-256 over the names, sizes and contents of the files, in their order.

    Names, not paths: a corpus may move.  The order counts, because it is the order of documents.
    `sum_of` may know the sums of contents already (sums.py).
    """
    digest = hashlib.sha256()
    for path in files:
        with plain_errors(path):
            entry = [path.name, path.stat().st_size, sum_of(path)]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- bytes


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, about a megabyte at a time.

    Raises: DataError naming the file where it cannot be read, or ends too early.
    """
    with plain_errors(path):
        if path.suffix.lower() == ".zst":
            yield from _zstd_chunks(path)
            return
        with _opened(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _opened(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return cast(IO[bytes], bz2.open(path)) if suffix == ".bz2" else path.open("rb")


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    # Its stream reader takes a truncated file for a short one; this knows where a frame ends.
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    frame = unpacker.decompressobj()
    is_inside = False
    try:
        with path.open("rb") as file:
            while packed := file.read(CHUNK_BYTES // 8):
                while packed:
                    is_inside = True
                    if chunk := frame.decompress(packed):
                        yield chunk
                    packed = b""
                    if frame.eof:
                        packed = frame.unused_data
                        frame = unpacker.decompressobj()
                        is_inside = False
    except zstandard.ZstdError as error:
        if "memory" in str(error):
            raise DataError(
                f"{path}: there is not enough memory to unpack it ({error}), expected at most "
                "--long=31: pack it again with a smaller --long"
            ) from None
        raise DataError(f"{path}: damaged ({error}); get it again") from None
    if is_inside:
        raise EOFError


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """What goes wrong with the file itself, in one line."""
    try:
        yield
    except EOFError:
        raise DataError(f"{path}: the file ends in the middle of its data; get it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); get it again") from None
    except OSError as error:
        if error.errno is None and path.suffix.lower() == ".bz2":
            raise DataError(f"{path}: damaged ({error}); get it again") from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, decoded, without line feeds and a leading byte order mark.

    Raises: DataError naming line and byte of what is not UTF-8.
    """
    start = 0
    for number, line in enumerate(_split_lines(read_chunks(path)), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(f"{path}, line {number}", start, error) from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text
        start += len(line) + 1


def not_utf8(where: str, start: int, error: UnicodeDecodeError) -> DataError:
    """The error for bytes that are no text; `start` is where the decoder's input begins."""
    byte = error.object[error.start]
    return DataError(
        f"{where}: not UTF-8 at byte {start + error.start} (0x{byte:02x}): save the file as UTF-8"
    )


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*held, line])
            held = []
        held.append(rest)
    if last := b"".join(held):
        yield last


# ---------------------------------------------------------------------------------------- records


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The values of a .jsonl or .json file, the rows of a table (of them only these columns).

    Raises: DataError with file and line, item or row for what is not UTF-8, JSON, CSV, Parquet or
            Arrow.
    """
    if format_of(path) in TABLES:
        from nanochat.corpus.tables import read_table  # it stands on this file

        return read_table(path, columns)
    return _json_lines(path) if format_of(path) == "lines" else _json_values(path)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line and not line.isspace():
            where = f"{path}, line {number}"
            try:
                yield Record(json.loads(line), where)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON ({_reason(error)})") from None


def _json_values(path: Path) -> Iterator[Record]:
    """The items of one array, or values one after another, a few in memory at a time."""
    text = _JsonText(path)
    is_array = text.take("[")
    number = 0
    while text.peek() and not (is_array and text.peek() == "]"):
        if is_array and number and not text.take(","):
            raise DataError(f"{path}: {text.peek()!r} follows item {number}, expected ',' or ']'")
        number += 1
        yield Record(text.value(number), f"{path}, item {number}")
    if is_array and not text.take("]"):
        raise DataError(f"{path}: the array is not closed after item {number}; get the file again")
    if text.peek():
        raise DataError(
            f"{path}: {text.peek()!r} follows the array, expected its end: "
            "name the file .jsonl if each of its lines is an array"
        )


class _JsonText:
    """A window over the text of a JSON file that grows until the next value is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = read_lines(path)
        self._window = ""
        self._place = 0
        self._first_line = 1
        self._is_complete = False

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            found = NOT_SPACE.search(self._window, self._place)
            self._place = found.start() if found else len(self._window)
            if found or not self._grow(CHUNK_BYTES):
                return found.group() if found else ""

    def take(self, character: str) -> bool:
        """Go past the next character if it is this one."""
        is_next = self.peek() == character
        self._place += is_next
        return is_next

    def value(self, number: int) -> Any:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, self._place = DECODER.raw_decode(self._window, self._place)
                return value
            except (ValueError, RecursionError) as error:
                # Perhaps it is not all here yet: twice as much is tried, then twice that.
                if isinstance(error, RecursionError) or not self._grow(2 * len(self._window)):
                    at = getattr(error, "pos", self._place)
                    line = self._first_line + self._window.count("\n", 0, at)
                    reason = getattr(error, "msg", "nested too deeply")
                    raise DataError(
                        f"{self._path}, item {number}, line {line}: not JSON ({reason})"
                    ) from None

    def _grow(self, num_characters: int) -> bool:
        if self._is_complete:
            return False
        self._first_line += self._window.count("\n", 0, self._place)
        parts = [self._window[self._place :]]
        wanted = num_characters
        for _, line in self._lines:
            parts.append(line + "\n")
            wanted -= len(line) + 1
            if wanted <= 0:
                break
        else:
            self._is_complete = True
        self._window, self._place = "".join(parts), 0
        return True


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
