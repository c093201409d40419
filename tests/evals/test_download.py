"""Loading data, from a server on this machine."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common.errors import DataError
from nanochat.evals.checksums import KNOWN_SHA256
from nanochat.evals.data import DataFiles
from nanochat.evals.download import BUNDLE_URL, HUB_URL, WORDS_URL, Downloader, load_file


@dataclass
class Server:
    """What is served, what was asked for, after how many bytes the line breaks once."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    redirects: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            if self.path in state.redirects:
                target, headers = state.redirects[self.path]
                self.send_response(302)
                self.send_header("Location", state.url + target)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if begin and begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            for name, value in state.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[begin : begin + state.breaks.pop(self.path, len(content))])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, each in files.items():
            archive.writestr(name, each)
    return content.getvalue()


@pytest.mark.req("FR-037")
def test_only_the_places_of_the_reference_are_asked() -> None:
    hosts = {url.split("/")[2] for url in (BUNDLE_URL, HUB_URL, WORDS_URL)}
    assert hosts == {
        "karpathy-public.s3.us-west-2.amazonaws.com",
        "huggingface.co",
        "raw.githubusercontent.com",
    }


@pytest.mark.req("FR-037")
def test_the_bundle_is_loaded_once_and_goes_on_where_the_line_broke(
    tmp_path: Path, server: Server
) -> None:
    coqa = "eval_bundle/eval_data/reading_comprehension/coqa.jsonl"
    other = "eval_bundle/eval_data/world_knowledge/own.jsonl"
    server.files["/eval_bundle.zip"] = packed(
        {coqa: b'{"n": 1}\n', other: b'{"n": 2}\n', "eval_bundle/../../evil": b"x", "loose": b"x"}
    )
    server.breaks["/eval_bundle.zip"] = 100
    files = DataFiles([tmp_path / "d"], Downloader(tmp_path / "d", server.url))
    assert files.rows(coqa)[0].value == {"n": 1}
    assert files.rows(other)[0].value == {"n": 2}
    assert server.asked == [("/eval_bundle.zip", None), ("/eval_bundle.zip", "bytes=100-")]
    there = {path.relative_to(tmp_path).parts[1] for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {"eval_bundle", "downloads", ".lock"}
    with pytest.raises(DataError, match=r"does not have eval_bundle/eval_data/x.jsonl"):
        files.rows("eval_bundle/eval_data/x.jsonl")


@pytest.mark.req("FR-037")
def test_a_file_of_the_bundle_that_is_not_what_it_is_known_as_is_refused(
    tmp_path: Path, server: Server
) -> None:
    copa = "eval_bundle/eval_data/commonsense_reasoning/copa.jsonl"
    assert "copa.jsonl" in KNOWN_SHA256
    server.files["/eval_bundle.zip"] = packed({copa: b"{}\n"})
    with pytest.raises(DataError, match="not the file it is known as"):
        Downloader(tmp_path, server.url)(copa)
    assert not (tmp_path / copa).exists()


@pytest.mark.req("FR-041")
def test_rows_of_the_hub_become_jsonl_and_their_hash_is_checked(
    tmp_path: Path, server: Server
) -> None:
    content = io.BytesIO()
    rows = [{"question": "?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "s"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    listing = "/api/datasets/cais/mmlu/parquet/all/test"
    server.files[listing] = json.dumps([f"{server.url}/resolve/0.parquet"]).encode()
    server.redirects["/resolve/0.parquet"] = ("/cdn", {"X-Linked-ETag": f'"{digest}"'})
    server.files["/cdn"] = content.getvalue()
    found = DataFiles([tmp_path / "d"], Downloader(tmp_path / "d", server.url))
    assert [row.value for row in found.rows("mmlu/test.jsonl")] == rows
    server.redirects["/resolve/0.parquet"] = ("/cdn", {"X-Linked-ETag": f'"{"0" * 64}"'})
    with pytest.raises(DataError, match="SHA-256 is not 0000"):
        Downloader(tmp_path / "e", server.url)("mmlu/test.jsonl")


def test_a_place_that_cannot_be_reached_is_asked_once_a_run(tmp_path: Path, server: Server) -> None:
    downloader = Downloader(tmp_path, server.url)
    for _ in range(2):
        with pytest.raises(DataError, match=r"words_alpha.txt cannot be loaded.*--data-dir"):
            downloader("spellingbee/words_alpha.txt")
    assert len(server.asked) == 1
    with pytest.raises(DataError, match="not among the files"):
        downloader("secret/file")


def test_what_is_complete_already_is_not_taken_for_broken(tmp_path: Path, server: Server) -> None:
    server.files["/f"] = b"abcdef"
    (tmp_path / ".f.part").write_bytes(b"abcdef")
    load_file(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"abcdef"
