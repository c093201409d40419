"""Names of data sets: loaded once, found again, mixed with paths."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common.download import DownloadOptions
from nanochat.common.errors import ConfigError, DataError
from nanochat.corpus import catalog, remote
from nanochat.corpus.catalog import (
    CATALOG,
    Files,
    HubFolder,
    HubSplits,
    Shards,
    find_dataset,
)
from nanochat.corpus.conversations import split_conversations
from nanochat.corpus.documents import read_documents, split_documents
from nanochat.corpus.places import find_places, split_places
from nanochat.corpus.remote import (
    LoadOptions,
    arrived,
    dataset_of,
    fetch,
    folder_of,
    is_remote,
)
from nanochat.corpus.split import SplitRule
from tests.download_server import Served, Server, serving

pytestmark = pytest.mark.req("FR-032")

QUICK = DownloadOptions(backoff_s=0.001, num_tries=2)
TEXT = ("text", "lines", "parquet")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The Hub."""
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def parquet(*texts: str, column: str = "text") -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({column: list(texts)}), content)
    return content.getvalue()


def serve_shards(server: Server, monkeypatch: pytest.MonkeyPatch, num_shards: int = 5) -> None:
    """Shards of one document each, under the name `climbmix`."""
    entry = CATALOG["climbmix"]
    source = Shards(
        repository="a/b", pattern="shard_{:05d}.parquet", num_shards=num_shards, num_usual=2
    )
    small = replace(entry, source=source, num_files=num_shards, size_bytes=9999)
    monkeypatch.setattr(catalog, "CATALOG", {**CATALOG, "climbmix": small})
    for number in range(num_shards):
        path = f"/datasets/a/b/resolve/main/shard_{number:05d}.parquet"
        server.files[path] = Served(parquet(f"text {number}"), etag='"a"')


def serve_splits(server: Server, splits: dict[str, dict[str, list[bytes]]]) -> None:
    """The Parquet files of org/chats, by configuration and split."""
    listed: dict[str, dict[str, list[str]]] = {}
    for config, parts in splits.items():
        for split, contents in parts.items():
            for number, content in enumerate(contents):
                path = f"/api/datasets/org/chats/parquet/{config}/{split}/{number}.parquet"
                listed.setdefault(config, {}).setdefault(split, []).append(
                    f"https://huggingface.co{path}"
                )
                server.files[path] = Served(content)
    server.files["/api/datasets/org/chats/parquet"] = Served(json.dumps(listed).encode())


# ---------------------------------------------------------------------------------------- names


def test_the_catalog_says_all_that_is_promised_of_each() -> None:
    wanted = "climbmix fineweb-edu fineweb smoltalk mmlu-auxiliary gsm8k arc identity core"
    assert {*wanted.split(), "tinystories", "tinyshakespeare"} == set(CATALOG)
    for name, entry in CATALOG.items():
        assert entry.name == name and find_dataset(f"data:{name}") is entry
        assert entry.licence and entry.split_rule and entry.checksum and entry.title
        assert entry.size_bytes and entry.num_files
    assert isinstance(CATALOG["fineweb"].source, HubFolder)
    shards = CATALOG["climbmix"].source
    assert isinstance(shards, Shards) and shards.pattern.format(6542) == "shard_06542.parquet"


def test_hosts_are_those_the_reference_loads_from() -> None:
    sources = [entry.source for entry in CATALOG.values()]
    urls = [each.url for source in sources if isinstance(source, Files) for each in source.files]
    assert {url.split("/")[2] for url in urls} == {
        "karpathy-public.s3.us-west-2.amazonaws.com",
        "raw.githubusercontent.com",
    }


def test_names_and_paths_are_told_apart() -> None:
    remote_names = ["data:x", "hf:a/b", "s3://b/k", "https://h/f.txt", "gs://b/*", "memory:/b"]
    assert all(map(is_remote, remote_names))
    assert not any(map(is_remote, ["a/b", "/a:b", "c:x", "data", "~/x", "*.txt", "http:"]))
    found = find_dataset("hf:a/b/c:train")
    assert isinstance(found.source, HubSplits)
    assert found.source.splits == {("c", "train"): "train"}
    for name in ("hf:a/b/c:train", "climbmix", "https://h/f.csv"):
        assert dataset_of(f"{name}#body") == replace(dataset_of(name), column="body")
    for wrong in ("hf:a", "hf:a/b/c/d", "hf:a/b:", "climb", "data:climb"):
        with pytest.raises(ConfigError, match="expected"):
            find_dataset(wrong)
    with pytest.raises(ConfigError, match="names no file"):
        dataset_of("https://host/")
    with pytest.raises(ConfigError, match="at least 1"):
        LoadOptions(num_files=0)


# ---------------------------------------------------------------------------------------- loading


def test_shards_are_loaded_as_many_as_are_asked_for_with_the_one_that_is_held_out(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_shards(server, monkeypatch)
    dataset = dataset_of("climbmix")
    assert arrived(dataset) is None
    with pytest.raises(DataError, match="not on this machine: nanochat data download climbmix"):
        read_documents("data:climbmix")
    names = [path.name for path in fetch(dataset, None, LoadOptions(download=QUICK)).files]
    assert names == [f"shard_0000{number}.parquet" for number in (0, 1, 4)]
    split = split_documents("data:climbmix")
    assert [document.text for document in split.train()] == ["text 0", "text 1"]
    assert [document.text for document in split.validation()] == ["text 4"]
    num_asked = len(server.asked)
    fetch(dataset)  # what is here is not asked for again
    fetch(dataset, None, LoadOptions(num_files=1))
    assert len(server.asked) == num_asked
    more = fetch(dataset, None, LoadOptions(is_whole=True))
    assert [path.stem[-1] for path in more.files] == list("01234")
    assert {path.name for path in find_places(TEXT, "data:climbmix:validation").files} == {
        "shard_00004.parquet"
    }
    assert not split_places(TEXT, "data:climbmix:train", None)[1].validation_files
    with pytest.raises(DataError, match="nothing for 'test' here, expected one of train, valid"):
        find_places(TEXT, "data:climbmix:test")


def test_a_file_that_has_gone_is_told_and_loaded_again(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_shards(server, monkeypatch)
    dataset = dataset_of("climbmix")
    first = fetch(dataset).files[0]
    first.write_bytes(b"")
    with pytest.raises(DataError, match="is not as it was loaded: nanochat data download climb"):
        arrived(dataset)
    fetch(dataset)
    assert next(read_documents(first)).text == "text 0"
    first.unlink()
    fetch(dataset)
    assert first.is_file()


def test_splits_of_the_hub_are_loaded_at_their_first_use(home: Path, server: Server) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat = pa.table({"talk": [talk] * 3})
    content = io.BytesIO()
    pq.write_table(chat, content)
    serve_splits(server, {"default": {"train": [content.getvalue()] * 2, "test": [parquet("t")]}})
    split = split_conversations("hf:org/chats#talk", SplitRule(is_last_file=True))
    assert (len(list(split.train())), len(list(split.validation()))) == (3, 3)
    assert [document.text for document in read_documents("hf:org/chats:test")] == ["t"]
    num_asked = len(server.asked)
    split_conversations("hf:org/chats#talk", SplitRule(is_last_file=True))
    assert len(server.asked) == num_asked
    assert not list(home.rglob(".listing.json"))
    with pytest.raises(DataError, match="split 'valid' is not there, expected one of train, test"):
        read_documents("hf:org/chats:valid")
    with pytest.raises(DataError, match="configuration 'x' is not there, expected one of default"):
        read_documents("hf:org/chats/x")
    with pytest.raises(DataError, match="answered 404"):
        read_documents("hf:org/none")
    server.files["/api/datasets/org/none/parquet"] = Served(b"{}")
    with pytest.raises(DataError, match="lists nothing"):
        read_documents("hf:org/none")


def test_a_part_that_the_hub_has_converted_is_told(
    home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_splits(server, {"en": {"partial-train": [parquet("one"), parquet("two")]}})
    assert [document.text for document in read_documents("hf:org/chats")] == ["one", "two"]
    assert "hf:org/chats: a part of it only" in capsys.readouterr().err
    assert fetch(dataset_of("hf:org/chats")).is_partial


def test_listings_are_asked_for_as_patiently_as_files(home: Path, server: Server) -> None:
    serve_splits(server, {"default": {"train": [parquet("one")]}})
    server.files["/api/datasets/org/chats/parquet"].refusals = [(503, {})] * 9
    with pytest.raises(DataError, match="503.*2 tries"):
        fetch(dataset_of("hf:org/chats"), None, LoadOptions(download=QUICK))


def test_a_data_set_says_what_it_holds_out(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HubSplits(
        repository="org/chats",
        splits={(None, "train"): "train", (None, "test"): "validation"},
    )
    entry = replace(CATALOG["smoltalk"], source=source, column="said")
    monkeypatch.setattr(catalog, "CATALOG", {"smoltalk": entry})
    part = parquet('{"role": 1}', column="said")
    serve_splits(server, {"only": {"train": [part], "test": [part]}})
    fetch(dataset_of("smoltalk"))
    split = split_documents("data:smoltalk")
    assert split.rule == "1 named files are held out"
    assert [document.source[-18:] for document in split.validation()] == ["test-00000.parquet"]
    assert "said" in split.identity("train")
    mine = home / "mine.txt"
    mine.write_text("mine")
    own = split_documents([mine, "data:smoltalk:train"], SplitRule(validation_files=(mine,)))
    assert [document.text for document in own.validation()] == ["mine"]
    with pytest.raises(DataError, match="not on this machine"):
        split_documents("data:smoltalk", home=home / "other")
    with pytest.raises(DataError, match="has no file that can be read here"):
        find_places(["text"], "data:smoltalk")


def test_a_folder_of_the_hub_says_sizes_and_sums(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HubFolder(repository="a/b", folder="sample/10BT", num_usual=1)
    entry = replace(CATALOG["fineweb"], source=source, size_bytes=9)
    monkeypatch.setattr(catalog, "CATALOG", {"fineweb": entry})
    listed = []
    for number in range(3):
        content = parquet(f"text {number}")
        path = f"sample/10BT/00{number}.parquet"
        server.files[f"/datasets/a/b/resolve/main/{path}"] = Served(content, corruptions=1)
        digest = hashlib.sha256(content).hexdigest()
        listed.append({"path": path, "size": len(content), "lfs": {"oid": digest}})
    server.files["/api/datasets/a/b/tree/main/sample/10BT"] = Served(
        json.dumps([{"path": "sample/README.md"}, *reversed(listed)]).encode()
    )
    found = fetch(dataset_of("fineweb"), None, LoadOptions(download=QUICK))
    assert [path.name for path in found.files] == ["000.parquet", "002.parquet"]
    record = json.loads((found.folder / ".dataset.json").read_text())
    assert record["files"][0]["sha256"] == listed[0]["lfs"]["oid"]  # type: ignore[index]
    server.files["/api/datasets/a/b/tree/main/sample/10BT"] = Served(b'[{"path": "x"}]')
    with pytest.raises(DataError, match="lists 0 Parquet files"):
        fetch(dataset_of("fineweb"), None, LoadOptions(is_whole=True))


def test_addresses_are_files_too(home: Path, server: Server) -> None:
    server.files["/some/poem.txt"] = Served(b"roses are red")
    url = f"{server.url}/some/poem.txt"
    for name in (url, Path(url)):  # which has made one slash of two
        assert [document.text for document in read_documents(name)] == ["roses are red"]
    assert len(server.asked) == 1
    server.files["/table.csv"] = Served(b"a,b\none,two\n")
    (document,) = read_documents(f"{server.url}/table.csv#b")
    assert document.text == "two"


def test_object_stores_are_read_through_fsspec(home: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name, text in (("/corpus/a/x.txt", b"one"), ("/corpus/b/x.txt", b"two")):
        system.pipe(name, text)
    for _ in range(2):  # the second time nothing is asked, nor listed
        texts = [document.text for document in read_documents("memory://corpus")]
        assert texts == ["one", "two"]
        if system.exists("/corpus"):
            system.rm("/corpus", recursive=True)


def test_offline_what_is_here_is_used_and_the_rest_told(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_shards(server, monkeypatch)
    monkeypatch.setenv("NANOCHAT_OFFLINE", "1")
    with pytest.raises(DataError, match="OFFLINE is set"):
        fetch(dataset_of("climbmix"))
    monkeypatch.delenv("NANOCHAT_OFFLINE")
    fetch(dataset_of("climbmix"))
    monkeypatch.setenv("NANOCHAT_OFFLINE", "1")
    assert len(fetch(dataset_of("climbmix")).files) == 3
    for enough in (LoadOptions(num_files=1), LoadOptions(num_files=2)):
        assert len(fetch(dataset_of("climbmix"), None, enough).files) == 3
    for number, options in ((3, LoadOptions(num_files=3)), (4, LoadOptions(is_whole=True))):
        with pytest.raises(DataError, match=rf"2 files to train on .* the {number} that .*OFFLINE"):
            fetch(dataset_of("climbmix"), None, options)
    monkeypatch.delenv("NANOCHAT_OFFLINE")
    fetch(dataset_of("climbmix"), None, LoadOptions(is_whole=True))
    monkeypatch.setenv("NANOCHAT_OFFLINE", "1")
    for options in (LoadOptions(num_files=170), LoadOptions(is_whole=True)):
        assert len(fetch(dataset_of("climbmix"), None, options).files) == 5  # there are no more


def test_a_disk_without_room_is_told_before_anything_is_loaded(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_shards(server, monkeypatch)
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"climbmix needs 6.0 kB and .* has 1.0 kB free"):
        fetch(dataset_of("climbmix"))
    assert not server.asked


# ---------------------------------------------------------------------------------------- paths


def test_a_column_can_be_named_beside_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": "not this"}\n')
    (tmp_path / "b#c.txt").write_text("two")
    paths = [f"{tmp_path}/a.jsonl#body", f"{tmp_path}/b#c.txt"]
    assert [document.text for document in read_documents(paths)] == ["one", "two"]
    assert [document.text for document in read_documents(f"{tmp_path}/a.jsonl")] == ["not this"]
    both = split_documents(paths)
    assert both.identity("train") != split_documents([tmp_path / "a.jsonl", paths[1]]).identity(
        "train"
    )
    with pytest.raises(DataError, match="does not exist"):
        find_places(TEXT, f"{tmp_path}/none.txt#a")
    with pytest.raises(DataError, match="no path was given"):
        find_places(TEXT, [])
    with pytest.raises(DataError, match="`nanochat eval` finds it"):
        find_places(TEXT, "data:core")


def test_every_data_set_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = [*CATALOG, "hf:a/b", "hf:a/b/c", "hf:a/b:c", "https://h/f.txt", "https://h/g.txt"]
    folders = {folder_of(dataset_of(name), tmp_path) for name in names}
    assert len(folders) == len(names)
    assert all(folder.is_relative_to(tmp_path / "data") for folder in folders)
