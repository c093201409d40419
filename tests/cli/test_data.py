"""nanochat data list, download, show."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.corpus.catalog import CATALOG
from tests.download_server import Served, Server, serving

pytestmark = pytest.mark.req("FR-032")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def test_the_catalog_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CATALOG)
    assert "CC-BY-NC-4.0" in shown and "600 GB" in shown and "6,543" in shown
    assert main(["data", "list", "gsm8k", "core", "--json"]) == 0
    gsm8k, core = json.loads(capsys.readouterr().out)["datasets"]
    assert (gsm8k["kind"], gsm8k["state"], core["state"]) == ("chat", "not here", "not here")
    assert core["folder"] == str(home / "data" / "eval")
    assert main(["data", "list", "tinystories", "hf:a/b"]) == 0
    shown = capsys.readouterr().out
    assert "the Hub's split `validation`" in shown and "about unknown, unknown files" in shown
    assert main(["data", "list", "hf:a/b#body", "https://host/f.csv", "--json"]) == 0
    hub, address = json.loads(capsys.readouterr().out)["datasets"]
    assert (hub["name"], hub["column"], address["state"]) == ("hf:a/b", "body", "not here")
    assert main(["data", "list", "tiny"]) == 2
    assert "not in the catalog, expected one of climbmix" in capsys.readouterr().err


def test_a_file_is_loaded_and_shown(
    home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/poem.txt"] = Served(b"roses are red")
    url = f"{server.url}/poem.txt"
    assert main(["data", "download", url]) == 0
    captured = capsys.readouterr()
    assert f"give it to training as {url}" in captured.out and "poem.txt: 13 B" in captured.err
    assert main(["data", "download", url, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (result["num_files"], result["num_bytes"]) == (1, 13)
    assert main(["data", "download", f"{url}#body"]) == 0
    assert f"give it to training as {url}#body" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert main(["data", "show", url]) == 0
    shown = capsys.readouterr().out
    assert "roses are red" in shown and "1 files, 13 B, 1 documents" in shown


def test_one_that_fails_keeps_none_of_the_others_from_arriving(
    home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/poem.txt"] = Served(b"roses are red")
    bad, good, worse = (f"{server.url}/{name}" for name in ("a.txt", "poem.txt", "b.txt"))
    assert main(["data", "download", bad, good, worse, "--json"]) == 2
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [each["name"] for each in told["datasets"]] == [good] and len(told["failures"]) == 2
    assert (
        f"2 of 3 data sets not loaded; {bad}: " in captured.err and f"; {worse}: " in captured.err
    )


def test_the_bundle_is_loaded_as_patiently_as_is_asked_for(
    home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/eval_bundle.zip"] = Served(b"", refusals=[(503, {"Retry-After": "0"})] * 9)
    assert main(["data", "download", "core", "--mirror", server.url, "--tries", "1"]) == 2
    assert "1 tries" in capsys.readouterr().err and len(server.asked) == 1


def test_the_core_bundle_goes_where_the_evaluation_looks(
    home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("eval_bundle/eval_meta_data.csv", "x")
    server.files["/eval_bundle.zip"] = Served(content.getvalue())
    for _ in range(2):
        assert main(["data", "download", "core", "--mirror", server.url]) == 0
    assert "nanochat eval finds it" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert (home / "data/eval/eval_bundle/eval_meta_data.csv").read_text() == "x"
    assert main(["data", "list", "core"]) == 0
    assert "state      here" in capsys.readouterr().out


def test_what_is_shown_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n{"no": "shape"}\n')
    (tmp_path / "b.csv").write_text("text\none\x1b[31m\n" + "two\n" * 1000)
    assert main(["data", "show", str(tmp_path)]) == 2
    shown = capsys.readouterr().out
    assert "user: 1+1? | assistant: 2" in shown and "PROBLEM" in shown and "\x1b" not in shown
    assert "shape    question and answer (1)" in shown.replace("(2)", "(1)")
    assert "1,000 or more documents" in shown and "--all counts" in shown
    assert "1 cannot be read whole" in shown
    assert main(["data", "show", f"{tmp_path}/b.csv", "--all", "--json", "--examples", "1"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["files"]
    assert (facts["num_items"], facts["is_counted"], len(facts["examples"])) == (1001, True, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["download"], "no data set was named"),
        (["download", "gsm8k", "--workers", "0"], "workers is 0, expected at least 1"),
        (["download", "gsm8k", "--whole", "--num-files", "2"], "choose one"),
        (["download", "gsm8k", "--whole"], "--whole is for data sets in shards, and gsm8k is"),
        (["download", "core", "--num-files", "2"], "--num-files is for data sets in shards"),
        (["download", "gsm8k", "--mirror", "http://x"], "--mirror is for the CORE bundle (core)"),
        (["show"], "no path was given"),
        (["show", "x", "--examples", "-1"], "examples is -1"),
        (["show", "data:gsm8k"], "nanochat data download gsm8k"),
    ],
)
def test_mistakes_are_told_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["data", *words]) == 2
    assert message in capsys.readouterr().err
