"""The split: pure, disjoint, complete, never empty on a side."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import ConfigError, DataError
from nanochat.corpus.files import ReadReport
from nanochat.corpus.split import Reader, Split, SplitRule, split_files

pytestmark = pytest.mark.req("FR-032")


def line_reader(name: str = "lines") -> Reader[str]:
    """Every line of the files is an item."""

    def read(files: Sequence[Path], report: ReadReport | None) -> Iterator[str]:
        for path in files:
            yield from path.read_text().splitlines()

    return Reader(name=name, read=read, text_of=lambda line: line)


def split_of(directory: Path, lines: Sequence[str], fraction: float) -> Split[str]:
    path = directory / "lines.txt"
    path.write_text("\n".join(lines))
    return split_files(line_reader(), [path], SplitRule(fraction=fraction))


@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=2).filter(
        lambda lines: len(set(lines)) > 1
    ),
    st.floats(0.001, 0.999),
)
def test_both_sides_have_something_and_nothing_is_on_both(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], fraction: float
) -> None:
    split = split_of(tmp_path_factory.mktemp("split"), lines, fraction)
    train, held_out = list(split.train()), list(split.validation())
    assert train and held_out
    assert not set(train) & set(held_out)  # equal texts are on the same side
    assert sorted(train + held_out) == sorted(lines)


def test_the_fraction_is_kept_and_does_not_move(tmp_path: Path) -> None:
    lines = [f"line {index}" for index in range(5000)]
    split = split_of(tmp_path, lines, 0.02)
    held_out = set(split.validation())
    assert 70 < len(held_out) < 130
    assert split.rule == "2.00% held out by hash of text"
    assert set(split_of(tmp_path, lines[::-1], 0.02).validation()) == held_out
    more = [*lines, *(f"more {index}" for index in range(5000))]
    assert held_out < set(split_of(tmp_path, more, 0.02).validation())
    assert set(split_of(tmp_path, lines[:3], 0.02).validation()) < set(lines[:3])
    assert split_of(tmp_path, lines[:3], 0.02).rule == "at least one held out by hash of text"


def test_choosing_reads_no_more_than_it_must(tmp_path: Path) -> None:
    seen: list[str] = []

    def read(files: Sequence[Path], report: ReadReport | None) -> Iterator[str]:
        for index in range(100_000):
            seen.append(f"line {index}")
            yield seen[-1]

    reader = Reader(name="endless", read=read, text_of=lambda line: line)
    split_files(reader, [tmp_path], SplitRule(fraction=0.05))
    assert len(seen) < 500


def test_one_text_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lines.txt: one text only, expected two"):
        split_of(tmp_path, ["the same", "the same"], 0.5)


def test_files_are_held_out_whole(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    for path in paths:
        path.write_text(f"{path.stem}1\n{path.stem}2")
    named = split_files(line_reader(), paths, SplitRule(validation_files=(paths[1],)))
    assert (list(named.train()), list(named.validation())) == (
        ["a1", "a2", "c1", "c2"],
        ["b1", "b2"],
    )
    assert named.rule == "1 named files are held out"
    last = split_files(line_reader(), paths, SplitRule(is_last_file=True))
    assert (list(last.train()), list(last.validation())) == (
        ["a1", "a2", "b1", "b2"],
        ["c1", "c2"],
    )
    assert "c.txt, is held out" in last.rule
    with pytest.raises(DataError, match="a.txt would be held out and nothing be left to train on"):
        split_files(line_reader(), paths[:1], SplitRule(is_last_file=True))


def test_identity_is_what_decides_the_items(tmp_path: Path) -> None:
    lines = [f"line {index}" for index in range(100)]
    split = split_of(tmp_path, lines, 0.1)
    identity = split.identity("train")
    assert split_of(tmp_path, lines, 0.1).identity("train") == identity
    renamed = split_files(line_reader("other"), [tmp_path / "lines.txt"], SplitRule(fraction=0.1))
    (tmp_path / "more.txt").write_text("more")
    paths = [tmp_path / "lines.txt", tmp_path / "more.txt"]
    by_file = split_files(line_reader(), paths, SplitRule(is_last_file=True))
    others = [
        split.identity("validation"),
        renamed.identity("train"),
        by_file.identity("train"),
        by_file.identity("validation"),
        split_of(tmp_path, lines, 0.2).identity("train"),
        split_of(tmp_path, lines[1:], 0.1).identity("train"),
    ]
    assert len({identity, *others}) == 7
    assert json.loads(identity)[1] == "lines"


def test_rules_that_contradict_are_refused() -> None:
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="fraction is"):
            SplitRule(fraction=fraction)
    with pytest.raises(ConfigError, match="choose one"):
        SplitRule(validation_files=(Path("a"),), is_last_file=True)
