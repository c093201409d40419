"""Loading data, from a server on this machine."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common.download import DownloadOptions
from nanochat.common.env import hub_url
from nanochat.common.errors import DataError
from nanochat.corpus.catalog import BUNDLE_URL
from nanochat.evals import checksums
from nanochat.evals.checksums import KNOWN_BLOBS, KNOWN_SHA256
from nanochat.evals.data import DataFiles
from nanochat.evals.download import WORDS_URL, Downloader
from tests.download_server import Served, Server, serving

QUICK = DownloadOptions(backoff_s=0.001, num_tries=2)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, each in files.items():
            archive.writestr(name, each)
    return content.getvalue()


@pytest.mark.req("FR-037")
def test_only_the_places_of_the_reference_are_asked() -> None:
    hosts = {url.split("/")[2] for url in (BUNDLE_URL, hub_url(), WORDS_URL)}
    assert hosts == {
        "karpathy-public.s3.us-west-2.amazonaws.com",
        "huggingface.co",
        "raw.githubusercontent.com",
    }


@pytest.mark.req("FR-037")
def test_the_bundle_is_loaded_once_and_goes_on_where_the_line_broke(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    coqa = "eval_bundle/eval_data/reading_comprehension/coqa.jsonl"
    other = "eval_bundle/eval_data/world_knowledge/own.jsonl"
    content = packed(
        {coqa: b'{"n": 1}\n', other: b'{"n": 2}\n', "eval_bundle/../../evil": b"x", "loose": b"x"}
    )
    server.files["/eval_bundle.zip"] = Served(content, etag='"a"', breaks=[100])
    files = DataFiles([tmp_path / "d"], Downloader(tmp_path / "d", server.url, QUICK))
    assert files.rows(coqa)[0].value == {"n": 1}
    assert files.rows(other)[0].value == {"n": 2}
    assert server.asked == [("/eval_bundle.zip", None), ("/eval_bundle.zip", "bytes=100-")]
    waited, done = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"eval_bundle.zip: the server sent 100 of .*; again in 0.0 s", waited)
    assert re.fullmatch(r"eval_bundle.zip: \d+ B, 1 of 1", done)
    there = {path.relative_to(tmp_path).parts[1] for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {"eval_bundle", "downloads", ".lock", ".eval_bundle.zip.lock"}
    with pytest.raises(DataError, match=r"does not have eval_bundle/eval_data/x.jsonl"):
        files.rows("eval_bundle/eval_data/x.jsonl")


@pytest.mark.req("FR-037")
def test_a_file_of_the_bundle_that_is_not_what_it_is_known_as_is_refused(
    tmp_path: Path, server: Server
) -> None:
    copa = "eval_bundle/eval_data/commonsense_reasoning/copa.jsonl"
    assert "copa.jsonl" in KNOWN_SHA256
    server.files["/eval_bundle.zip"] = Served(packed({copa: b"{}\n"}))
    with pytest.raises(DataError, match="not the file it is known as"):
        Downloader(tmp_path, server.url)(copa)
    assert not (tmp_path / copa).exists()


@pytest.mark.req("FR-042")
def test_words_and_hellaswag_are_known_by_what_git_calls_them(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, hellaswag = "spellingbee/words_alpha.txt", "hellaswag.jsonl"
    assert {"words_alpha.txt", hellaswag} == set(KNOWN_BLOBS)
    server.files["/words_alpha.txt"] = Served(b"apple\n")
    path = f"eval_bundle/eval_data/language_understanding/{hellaswag}"
    server.files["/eval_bundle.zip"] = Served(packed({path: b"{}\n"}))
    for name in (words, path):
        with pytest.raises(DataError, match="is not the file it is known as"):
            Downloader(tmp_path / "a", server.url)(name)
        assert not (tmp_path / "a" / name).exists()
    # printf 'apple\\n' | git hash-object --stdin
    monkeypatch.setattr(
        checksums, "KNOWN_BLOBS", {"words_alpha.txt": "4c479defff9a675f4fa1a8867096d90733e9b769"}
    )
    assert Downloader(tmp_path / "b", server.url)(words).read_bytes() == b"apple\n"


@pytest.mark.req("FR-041")
def test_rows_of_the_hub_become_jsonl_and_their_hash_is_checked(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO()
    rows = [{"question": "?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "s"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    listing = "/api/datasets/cais/mmlu/parquet/all/test"
    parquet = f"{server.url}/resolve/0.parquet"
    server.files[listing] = Served(json.dumps([parquet]).encode())
    headers = {"X-Linked-ETag": f'"{digest}"'}
    server.files["/resolve/0.parquet"] = Served(b"", redirect=f"{server.url}/cdn", headers=headers)
    server.files["/cdn"] = Served(content.getvalue())
    found = DataFiles([tmp_path / "d"], Downloader(tmp_path / "d", server.url))
    assert [row.value for row in found.rows("mmlu/test.jsonl")] == rows
    told = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["mmlu/test.jsonl.listing", "mmlu/test.jsonl.0.parquet"]
    headers["X-Linked-ETag"] = f'"{"0" * 64}"'
    with pytest.raises(DataError, match="SHA-256 is .*, expected 0000"):
        Downloader(tmp_path / "e", server.url, QUICK)("mmlu/test.jsonl")


@pytest.mark.req("FR-037")
def test_every_try_without_a_network_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    downloader = Downloader(tmp_path, "http://127.0.0.1:9", replace(QUICK, num_tries=3))
    with pytest.raises(DataError, match=r"words_alpha.txt cannot be loaded.*3 tries.*--data-dir"):
        downloader("spellingbee/words_alpha.txt")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2  # the third is the error
    for line in told:
        assert re.fullmatch(r"spellingbee/words_alpha.txt: .*refused; again in 0.0 s", line)


def test_a_place_that_cannot_be_reached_is_asked_once_a_run(tmp_path: Path, server: Server) -> None:
    downloader = Downloader(tmp_path, server.url)
    for _ in range(2):
        with pytest.raises(DataError, match=r"words_alpha.txt cannot be loaded.*--data-dir"):
            downloader("spellingbee/words_alpha.txt")
    assert len(server.asked) == 1
    with pytest.raises(DataError, match="not among the files"):
        downloader("secret/file")
