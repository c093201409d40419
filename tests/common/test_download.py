"""Loading files, from a server on this machine that misbehaves."""

import email.utils
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.download import (
    DownloadOptions,
    RemoteFile,
    download_all,
    download_file,
    is_complete,
)
from nanochat.common.download_answer import Known, RetryLater, open_answer
from nanochat.common.download_bars import Lines, human_bytes, shown
from nanochat.common.download_store import list_urls
from nanochat.common.errors import DataError
from nanochat.common.lock import locked
from tests.download_server import Served, Server, serving

CONTENT = bytes(range(256)) * 40
OTHER = CONTENT[::-1]
QUICK = DownloadOptions(backoff_s=0.001, num_tries=3, timeout_s=5.0)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.files, running.asked, running.tokens, running.after = {}, [], [], {}
    return running


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load(server: Server, folder: Path, **known: Any) -> bytes:
    remote = RemoteFile(url=f"{server.url}/f", name="f", **known)
    return download_file(remote, folder, QUICK).read_bytes()


@pytest.mark.req("FR-032")
@pytest.mark.parametrize(
    "how", [{"etag": '"a"'}, {"modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"etag": None}]
)
def test_a_load_goes_on_where_the_line_broke_if_the_file_is_known_to_be_the_same(
    tmp_path: Path, server: Server, how: dict[str, Any]
) -> None:
    server.files["/f"] = Served(CONTENT, breaks=[100, 50], **how)
    assert load(server, tmp_path) == CONTENT
    ranges = [asked for _, asked in server.asked]
    assert ranges == ([None, "bytes=100-", "bytes=150-"] if any(how.values()) else [None] * 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.lock", "f"]


@pytest.mark.req("FR-032")
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says what has been confirmed")
def test_every_byte_that_came_before_a_reset_is_kept(tmp_path: Path, server: Server) -> None:
    content = CONTENT * 200
    server.files["/f"] = Served(content, etag='"a"', breaks=[700_000, 5, 700_000], has_resets=True)
    assert load(server, tmp_path) == content
    ranges = [asked for _, asked in server.asked]
    assert ranges == [None, "bytes=700000-", "bytes=700005-", "bytes=1400005-"]


@pytest.mark.req("FR-032")
def test_without_a_validator_the_sum_lets_a_load_go_on(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, breaks=[100])
    assert load(server, tmp_path, sha256=sum_of(CONTENT)) == CONTENT
    assert server.asked[-1] == ("/f", "bytes=100-")


@pytest.mark.req("FR-032")
def test_a_file_that_changes_between_tries_is_begun_anew(tmp_path: Path, server: Server) -> None:
    for heeds in (True, False):
        server.files["/f"] = Served(CONTENT, etag='"a"', breaks=[100])
        server.after["/f"] = Served(OTHER, etag='"b"', heeds_if_range=heeds)
        folder = tmp_path / str(heeds)
        assert load(server, folder) == OTHER
    server.files["/f"] = Served(CONTENT, etag='"a"', breaks=[5000])
    server.after["/f"] = Served(b"short", etag='"b"', heeds_if_range=False)
    assert load(server, tmp_path / "shorter") == b"short"


@pytest.mark.req("FR-032")
def test_a_server_that_ignores_range_sends_all_again(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', has_ranges=False, breaks=[100, 200])
    assert load(server, tmp_path) == CONTENT


@pytest.mark.req("FR-032")
def test_a_server_that_never_gets_past_a_point_is_given_up(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', has_ranges=False, breaks=[100] * 99)
    with pytest.raises(DataError, match=r"sent 100 of 10,240 bytes; 3 tries\): run the same again"):
        load(server, tmp_path)
    server.files["/f"] = Served(CONTENT, etag='"a"')
    assert load(server, tmp_path) == CONTENT
    assert server.asked[-1] == ("/f", "bytes=100-")  # another process goes on, too


@pytest.mark.req("FR-032")
def test_lies_about_the_size_are_found(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', stated_bytes=len(CONTENT) + 10)
    with pytest.raises(DataError, match="10,240"):
        load(server, tmp_path / "long")
    server.files["/f"] = Served(CONTENT, etag='"a"', stated_bytes=100)
    with pytest.raises(DataError, match=r"has 100 bytes, expected 10,240"):
        load(server, tmp_path / "short", num_bytes=len(CONTENT))
    with pytest.raises(DataError, match=r"SHA-256 is .*, twice"):
        load(server, tmp_path / "sum", sha256=sum_of(CONTENT))
    server.files["/f"] = Served(CONTENT, is_chunked=True)  # ends where the line ends
    with pytest.raises(DataError, match=r"more than the expected 100 bytes"):
        load(server, tmp_path / "endless", num_bytes=100)
    with pytest.raises(DataError, match=r"has 10,240 bytes, expected 10,250"):
        load(server, tmp_path / "few", num_bytes=len(CONTENT) + 10)
    assert not list(tmp_path.glob("*/f"))


@pytest.mark.req("FR-032")
def test_a_wrong_byte_is_found_and_loaded_again_once(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', corruptions=1)
    assert load(server, tmp_path, sha256=sum_of(CONTENT)) == CONTENT
    server.files["/f"] = Served(CONTENT, etag='"a"', corruptions=9)
    with pytest.raises(DataError, match="twice"):
        load(server, tmp_path / "again", sha256=sum_of(CONTENT))
    assert [path.name for path in (tmp_path / "again").iterdir()] == [".f.lock"]


@pytest.mark.req("FR-032")
def test_the_sum_that_is_stated_on_the_way_is_checked(tmp_path: Path, server: Server) -> None:
    stated = {"X-Linked-ETag": f'"{sum_of(OTHER)}"'}
    server.files["/f"] = Served(b"", redirect=f"{server.url}/g", headers=stated)
    server.files["/g"] = Served(CONTENT)
    with pytest.raises(DataError, match=sum_of(OTHER)):
        load(server, tmp_path)
    server.files["/g"] = Served(OTHER, breaks=[10])
    assert load(server, tmp_path) == OTHER


@pytest.mark.req("FR-032")
def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path, server: Server) -> None:
    date = email.utils.formatdate(time.time() - 5, usegmt=True)
    refusals = [(429, {"Retry-After": "0"}), (503, {"Retry-After": date}), (500, {})]
    server.files["/f"] = Served(CONTENT, refusals=[*refusals[:2]])
    assert load(server, tmp_path) == CONTENT
    server.files["/f"] = Served(CONTENT, refusals=[(429, {"Retry-After": "1"})])
    start = time.monotonic()
    assert load(server, tmp_path / "later") == CONTENT
    assert time.monotonic() - start >= 1.0
    server.files["/f"] = Served(CONTENT, refusals=[(503, {"Retry-After": "86400"})])
    with pytest.raises(DataError, match=r"503.*asks to wait 86400 s"):
        load(server, tmp_path / "tomorrow")
    server.files["/f"] = Served(CONTENT, refusals=[(500, {"Retry-After": "soon"})] * 9)
    with pytest.raises(DataError, match=r"500.*3 tries"):
        load(server, tmp_path / "never")


def test_a_refusal_is_final(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="answered 404"):
        load(server, tmp_path)
    assert len(server.asked) == 1
    server.files["/f"] = Served(CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(DataError, match="sent as gzip"):
        load(server, tmp_path)
    with pytest.raises(RetryLater):
        server.files["/f"] = Served(CONTENT, refusals=[(503, {})])
        open_answer(f"{server.url}/f", 0, Known(), 5.0)


def test_the_token_is_shown_to_the_hub_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.files["/f"] = Served(b"", redirect=f"{elsewhere}/g")
    server.files["/g"] = Served(CONTENT)
    assert load(server, tmp_path) == CONTENT
    assert server.tokens == ["Bearer hf_secret", None]
    # The Hub also sends one on within itself, and asks again there.
    server.tokens.clear()
    server.files["/f"] = Served(b"", redirect=f"{server.url}/h")
    server.files["/h"] = Served(b"", redirect=f"{elsewhere}/g")
    assert load(server, tmp_path / "twice") == CONTENT
    assert server.tokens == ["Bearer hf_secret", "Bearer hf_secret", None]
    server.files["/f"] = Served(b"", refusals=[(403, {})])
    with pytest.raises(DataError, match="hf auth login"):
        load(server, tmp_path / "gated")


@pytest.mark.req("FR-032")
@pytest.mark.parametrize("name", ["NANOCHAT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_only_what_is_there_is_used(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server.files["/f"] = Served(CONTENT)
    monkeypatch.setenv(name, "1")
    with pytest.raises(DataError, match="OFFLINE is set: unset it"):
        load(server, tmp_path)
    assert not server.asked
    (tmp_path / "f").write_bytes(b"here")
    assert load(server, tmp_path) == b"here"
    remote = RemoteFile(url="http://x/f", name="f", num_bytes=5)
    assert not is_complete(remote, tmp_path)


@pytest.mark.req("FR-032")
def test_many_files_at_once_and_one_that_fails_keeps_none_from_arriving(
    tmp_path: Path, server: Server
) -> None:
    for number in range(9):
        server.files[f"/{number}"] = Served(CONTENT, etag='"a"', breaks=[10 * number])
    remotes = [RemoteFile(url=f"{server.url}/{n}", name=f"sub/{n}") for n in range(9)]
    stream = io.StringIO()
    lines = Lines(9, stream)
    assert download_all(remotes, tmp_path, QUICK, lines) == [
        tmp_path / f"sub/{n}" for n in range(9)
    ]
    said = stream.getvalue()
    assert "9 of 9" in said and "again in" in said
    del server.files["/3"], server.files["/7"]
    with pytest.raises(DataError, match="2 of 9 files not loaded: .*404") as failed:
        download_all(remotes, tmp_path / "other", QUICK)
    assert f"{server.url}/3 " in str(failed.value) and f"{server.url}/7 " in str(failed.value)
    assert len(list((tmp_path / "other/sub").glob("[0-9]"))) == 7


def test_where_nothing_arrives_the_rest_is_not_asked_for(tmp_path: Path, server: Server) -> None:
    remotes = [RemoteFile(url=f"{server.url}/{n}", name=str(n)) for n in range(200)]
    with pytest.raises(DataError, match=r"200 of 200 files not loaded: .* more were not tried"):
        download_all(remotes, tmp_path, QUICK)
    assert len(server.asked) < 100


def test_a_load_that_is_stopped_keeps_what_is_here(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', breaks=[0] * 99)
    stop = threading.Event()
    stop.set()
    with pytest.raises(DataError, match="stopped"):
        download_file(RemoteFile(url=f"{server.url}/f", name="f"), tmp_path, QUICK, None, stop)


@pytest.mark.req("FR-032")
def test_several_processes_load_a_file_once(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = Served(CONTENT, etag='"a"', breaks=[10, 10, 10])
    program = (
        "import sys, pathlib\n"
        "from nanochat.common.download import *\n"
        "print('ready', flush=True)\n"
        "options = DownloadOptions(backoff_s=0.001)\n"
        "remote = RemoteFile(url=sys.argv[1], name='f')\n"
        "download_file(remote, pathlib.Path(sys.argv[2]), options)\n"
    )
    command = [sys.executable, "-c", program, f"{server.url}/f", str(tmp_path)]
    with locked(tmp_path / ".f.lock"):
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for rank in ranks:
            assert rank.stdout is not None and rank.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        assert not server.asked
    for rank in ranks:
        rank.communicate(timeout=30)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert len(server.asked) == 4
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_what_came_whole_before_is_only_looked_at(tmp_path: Path, server: Server) -> None:
    (tmp_path / ".f.part").write_bytes(CONTENT)
    url = f"{server.url}/f"
    known = Known(num_bytes=len(CONTENT), etag='"a"')
    (tmp_path / ".f.part.json").write_text(json.dumps({"url": url, **known.to_json()}))
    assert Known.from_json({"url": url, **known.to_json()}) == known
    assert load(server, tmp_path) == CONTENT
    assert not server.asked


@pytest.mark.req("FR-032")
def test_other_schemes_go_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/f", CONTENT)
    remote = RemoteFile(url="memory://bucket/f", name="f")
    assert download_file(remote, tmp_path, QUICK).read_bytes() == CONTENT
    for url, reason in (("memory://bucket/g", "does not exist"), ("nope://x", "nope")):
        with pytest.raises(DataError, match=reason):
            download_file(RemoteFile(url=url, name="g"), tmp_path, QUICK)


def test_folders_and_patterns_of_fsspec_are_listed() -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in ("/many/b.txt", "/many/a.txt", "/many/in/c.md"):
        system.pipe(name, b"x")
    assert [url.rpartition("/")[2] for url in list_urls("memory://many")] == [
        "a.txt",
        "b.txt",
        "c.md",
    ]
    assert [url.rpartition("/")[2] for url in list_urls("memory://many/*.txt")] == [
        "a.txt",
        "b.txt",
    ]
    assert len(list_urls("memory://many/a.txt")) == 1
    with pytest.raises(DataError, match="does not exist"):
        list_urls("memory://many/*.csv")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_for_each_file_and_one_for_all(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    server.files["/one.bin"] = Served(CONTENT, etag='"a"', breaks=[10])
    server.files["/two.bin"] = Served(CONTENT)
    names = ("one.bin", "two.bin")
    remotes = [RemoteFile(url=f"{server.url}/{name}", name=name) for name in names]
    stream = Terminal()
    with shown(2, None, stream) as watcher:
        download_all(remotes, tmp_path, QUICK, watcher)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for what in (*names, "0 of 2 files", "2 of 2 files"):
        assert re.search(rf"{what} +━", drawn), what
    assert "sent 10 of 10,240 bytes" in stream.getvalue()
    with shown(2, None, io.StringIO()) as watcher:
        assert isinstance(watcher, Lines)


def test_sizes_are_told_in_decimal_units() -> None:
    assert [human_bytes(n) for n in (7, 1_500, 99_900, 89_100_000, 6 * 10**11, 2 * 10**12)] == [
        "7 B",
        "1.5 kB",
        "100 kB",
        "89.1 MB",
        "600 GB",
        "2.0 TB",
    ]
