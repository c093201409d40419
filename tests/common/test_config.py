"""config.py: defaults < file < flags; what is wrong is one line with the value and the remedy."""

import dataclasses
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.config import CommonOptions, from_dict, nearest, parse, to_json_dict
from nanochat.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    top_k: int | None = 50
    """Likeliest tokens."""
    temperature: float = 0.8
    """Heat."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Do something to a model."""

    model: tyro.conf.Positional[str]
    """Which model."""
    depth: int = 4
    """Layers."""
    rate: float = 0.5
    """Speed."""
    run: str | None = None
    """Name."""
    mode: Literal["fast", "slow"] = "fast"
    """Pace."""
    serve: bool = True
    """Open the page."""
    texts: tuple[Path, ...] = ()
    """Files."""
    pair: tuple[int, int] = (1, 2)
    """Two numbers."""
    names: list[str] = field(default_factory=list)
    """Words."""
    deep: Annotated[int, tyro.conf.arg(aliases=["-d"])] = 0
    """Depth again."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """What to say."""
    sampling: Sampling = Sampling(temperature=0.3)
    """Sampling."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"depth is {self.depth}, expected at least 1: pass --depth 4")


def read(*argv: str) -> Config:
    return parse(Config, argv, prog="nanochat do")


def read_file(tmp_path: Path, text: str, *argv: str) -> Config:
    (tmp_path / "c.toml").write_text(text)
    return read(*argv, "--config", str(tmp_path / "c.toml"))


def test_defaults() -> None:
    assert read("d4") == Config(model="d4")


def test_flags_of_every_type() -> None:
    config = read(
        *"d4 --depth 6 --rate 2 --run x --mode slow --no-serve --json --texts a b/c".split(),
        *[
            "--pair",
            "3",
            "4",
            "--names",
            "n",
            "-p",
            "two words",
            "--sampling.top-k",
            "None",
            "--home",
            "/h",
        ],
    )
    assert config == Config(
        model="d4",
        depth=6,
        rate=2.0,
        run="x",
        mode="slow",
        serve=False,
        json=True,
        texts=(Path("a"), Path("b/c")),
        pair=(3, 4),
        names=["n"],
        prompt="two words",
        sampling=Sampling(top_k=None, temperature=0.3),
        home=Path("/h"),
    )


def test_file_overrides_defaults_and_flags_override_the_file(tmp_path: Path) -> None:
    text = """
        model = "d6"
        depth = 8
        rate = 2
        texts = ["a.txt", "b.txt"]
        pair = [5, 6]
        names = ["n"]
        serve = false
        mode = "slow"
        [sampling]
        top_k = 3
    """
    config = read_file(tmp_path, text, "--depth", "9", "--serve")
    assert config == Config(
        model="d6",
        depth=9,
        rate=2.0,
        texts=(Path("a.txt"), Path("b.txt")),
        pair=(5, 6),
        names=["n"],
        mode="slow",
        sampling=Sampling(top_k=3, temperature=0.3),  # a table need not be complete
        config=tmp_path / "c.toml",
    )
    assert type(config.rate) is float
    assert read(f"--config={tmp_path / 'c.toml'}").model == "d6"


def test_a_flag_may_mend_what_the_file_gets_wrong_for_the_whole(tmp_path: Path) -> None:
    assert read_file(tmp_path, "depth = 0", "d4", "--depth", "2").depth == 2
    with pytest.raises(ConfigError, match="depth is 0, expected at least 1"):
        read_file(tmp_path, "depth = 0", "d4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dept = 20", "unknown key 'dept', did you mean 'depth'?"),
        ("zzz = 20", "unknown key 'zzz'"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("depth = 'six'", "depth is 'six', expected a whole number"),
        ("depth = 6.0", "depth is 6.0, expected a whole number"),
        ("depth = true", "depth is True, expected a whole number"),
        ("rate = 'fast'", "rate is 'fast', expected a number"),
        ("rate = false", "rate is False, expected a number"),
        ("serve = 1", "serve is 1, expected true or false"),
        ("run = 7", "run is 7, expected text"),
        ("home = 7", "home is 7, expected a path"),
        ("mode = 'medium'", "mode is 'medium', expected one of fast, slow"),
        ("texts = 'a.txt'", "texts is 'a.txt', expected a list, each item a path"),
        ("texts = [1]", "texts is [1], expected a list, each item a path"),
        ("pair = [1]", "pair is [1], expected 2 values, each a whole number"),
        ("names = [1]", "names is [1], expected a list, each item text"),
        ("sampling = 3", "sampling is 3, expected a table"),
        ("[sampling]\ntopk = 3", "sampling: unknown key 'topk', did you mean 'top_k'?"),
        ("[sampling]\ntop_k = 'x'", "sampling: top_k is 'x', expected a whole number"),
        ("[sampling]\ntemperature = -1", "sampling: temperature is -1.0, expected at least 0"),
        ("depth = ", "is not TOML: Invalid value (at"),
    ],
)
def test_a_file_that_is_half_understood_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_file(tmp_path, text, "d4")
    assert str(caught.value).startswith(str(tmp_path / "c.toml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x.toml: No such file or directory, expected a TOML"):
        read("d4", "--config", str(tmp_path / "x.toml"))
    (tmp_path / "c.toml").write_bytes(b"run = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 7"):
        read("d4", "--config", str(tmp_path / "c.toml"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["d4", "--dept", "3"], "unknown flag --dept, did you mean '--depth'?"),
        (["--dept", "3"], "unknown flag --dept, did you mean '--depth'?"),
        (["d4", "--no_serv"], "unknown flag --no_serv, did you mean '--no-serve'?"),
        (
            ["d4", "--sampling.topk=1"],
            "unknown flag --sampling.topk, did you mean '--sampling.top-k'?",
        ),
        (["d4", "-q"], "unknown flag -q"),
        (["d4", "extra"], "unexpected argument 'extra'"),
        ([], "MODEL has no value, expected text"),
        (["--", "d4", "--depth"], "unexpected argument '--depth'"),
        (["d4", "--depth", "six"], "--depth is 'six', expected a whole number"),
        (["d4", "--depth=six"], "--depth is 'six', expected a whole number"),
        (["d4", "--depth"], "--depth has no value, expected a whole number"),
        (["d4", "--rate", "x"], "--rate is 'x', expected a number"),
        (["d4", "--mode", "medium"], "--mode is 'medium', expected one of fast, slow"),
        (["d4", "--pair", "1"], "--pair has no value, expected 2 values, each a whole number"),
        (["d4", "--pair", "1", "x"], "--pair is '1 x', expected 2 values, each a whole number"),
        (["d4", "--sampling.top-k", "x"], "--sampling.top-k is 'x', expected a whole number"),
        (["d4", "--sampling.temperature", "-1"], "temperature is -1.0, expected at least 0"),
        (["d4", "--depth", "0"], "depth is 0, expected at least 1: pass --depth 4"),
        (["d4", "-p"], "-p/--prompt has no value, expected text"),
        (["d4", "-d", "x"], "-d/--deep is 'x', expected a whole number"),
    ],
)
def test_flags_that_are_wrong_are_one_line(
    argv: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # who calls prints it, once


def test_boxes_of_plain_characters_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    with pytest.raises(ConfigError, match="^--depth is 'six', expected a whole number"):
        read("d4", "--depth", "six")


def test_an_error_says_where_help_is() -> None:
    with pytest.raises(ConfigError, match=r"\(nanochat do --help explains\)$"):
        read("d4", "--depth", "six")


def test_help_shows_the_docstrings_and_the_defaults_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_file(tmp_path, "depth = 77", "--help")
    page = capsys.readouterr().out
    assert caught.value.code == 0
    for words in ("Do something to a model.", "Layers.", "77", "nanochat do", "--no-serve"):
        assert words in page


configs = st.builds(
    Config,
    model=st.text(),
    depth=st.integers(1, 99),
    rate=st.floats(allow_nan=False),
    run=st.none() | st.text(),
    mode=st.sampled_from(["fast", "slow"]),
    texts=st.lists(st.sampled_from([Path("a"), Path("b/c")])).map(tuple),
    pair=st.tuples(st.integers(), st.integers()),
    names=st.lists(st.text()),
    sampling=st.builds(Sampling, top_k=st.none() | st.integers(), temperature=st.floats(0, 9)),
    json=st.booleans(),
    home=st.none() | st.just(Path("/h")),
)


@given(config=configs)
def test_a_config_survives_json(config: Config) -> None:
    values = to_json_dict(config)
    del values["config"]
    assert from_dict(Config, values, "config.json") == config


def test_from_dict_wants_what_has_no_default_and_runs_the_checks() -> None:
    with pytest.raises(ConfigError, match="config.json: expected a value for model, got none"):
        from_dict(Config, {"depth": 3}, "config.json")
    with pytest.raises(ConfigError, match="config.json: depth is 0"):
        from_dict(Config, {"model": "m", "depth": 0}, "config.json")


def test_to_json_dict_reaches_into_containers() -> None:
    @dataclass(frozen=True)
    class Outer:
        parts: tuple[Sampling, ...]
        table: dict[str, Path]

    outer = Outer((Sampling(),), {"a": Path("b")})
    assert to_json_dict(outer) == {
        "parts": [{"top_k": 50, "temperature": 0.8}],
        "table": {"a": "b"},
    }


def test_a_field_type_nobody_can_write_in_a_file_is_our_mistake() -> None:
    Odd = dataclasses.make_dataclass("Odd", [("x", complex)])
    with pytest.raises(AssertionError, match="cannot have the type"):
        from_dict(Odd, {"x": 1}, "here")


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("depht", ["depth", "rate"]) == ", did you mean 'depth'?"
    assert nearest("qqq", ["depth", "rate"]) == ""


def test_common_options_are_the_same_for_all() -> None:
    assert to_json_dict(CommonOptions()) == {"home": None, "config": None, "json": False}
