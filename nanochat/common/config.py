"""Defaults < TOML file < flags -> one frozen dataclass.   in: a config type, argv   out: the config
who calls: cli.main (parse), train and checkpoint (to_json_dict, from_dict)

A verb's settings are one frozen dataclass: its fields are the flags, the docstrings under them the
help, its `__post_init__` the checks.  A file that is half understood is an error: unknown keys and
wrong types name the key, what it is, what was expected and the nearest name.
Read next: cli/main.py (the verbs), tests/common/test_config.py (what is promised).
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nanochat.common.errors import ConfigError, NanochatError

__all__ = ["CommonOptions", "from_dict", "nearest", "parse", "to_json_dict"]


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every verb takes; a verb's Config inherits it."""

    home: Path | None = None
    """Where data, tokenizers and runs live. None: $NANOCHAT_HOME, else ~/.cache/nanochat."""
    config: Path | None = None
    """TOML file with values for these settings; flags override it."""
    json: bool = False
    """Print the result as one JSON object on the last line of standard output."""


def parse(
    config_type: type[C], argv: Sequence[str], *, prog: str, description: str | None = None
) -> C:
    """The config that defaults, then the file after --config, then the flags give.

    Raises: ConfigError in one line for anything wrong; SystemExit(0) after printing --help.
    """
    path = _config_path(argv)
    default = None if path is None else _file_defaults(config_type, path)
    return _parse_flags(config_type, argv, default, prog, description)


def from_dict(config_type: type[C], values: Mapping[str, Any], where: str) -> C:
    """The config with these values, the inverse of `to_json_dict`; `where` begins every error.

    Raises: ConfigError for unknown keys, wrong types, missing values, and what the type checks.
    """
    checked = _checked_values(config_type, values, where)
    if missing := [
        field.name
        for field in dataclasses.fields(config_type)
        if field.name not in checked and _default_of(field) is dataclasses.MISSING
    ]:
        raise ConfigError(f"{where}: expected a value for {', '.join(missing)}, got none")
    try:
        return config_type(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_json_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values: paths become text, tuples lists, nested configs objects."""
    return {
        field.name: _to_json(getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'depth'?` for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


# ------------------------------------------------------------------------------ the file


def _config_path(argv: Sequence[str]) -> Path | None:
    """The file has to be read before the flags, since its values are the flags' defaults."""
    for index, token in enumerate(argv):
        if token.startswith("--config="):
            return Path(token.removeprefix("--config="))
        if token == "--config" and index + 1 < len(argv):
            return Path(argv[index + 1])
    return None


def _file_defaults(config_type: type[C], path: Path) -> C:
    """An instance to take defaults from: not validated, since flags may still mend it."""
    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}, expected a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}, expected TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return _unchecked_instance(config_type, _checked_values(config_type, values, str(path)))


def _unchecked_instance(config_type: type[C], values: Mapping[str, Any]) -> C:
    import tyro

    instance = object.__new__(config_type)
    for field in dataclasses.fields(config_type):
        value = values[field.name] if field.name in values else _default_of(field)
        object.__setattr__(
            instance, field.name, tyro.MISSING if value is dataclasses.MISSING else value
        )
    return instance


def _default_of(field: dataclasses.Field[Any]) -> Any:
    """The default, or dataclasses.MISSING for a field that has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _checked_values(
    config_type: type[Any], values: Mapping[str, Any], where: str
) -> dict[str, Any]:
    hints = typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    known = fields.keys() - {"config"}  # a file does not name another file
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
        default = _default_of(fields[key])
        if _is_config(default) and isinstance(value, Mapping):  # a table need not be complete
            value = {**to_json_dict(default), **value}
        checked[key] = _checked(hints[key], value, f"{where}: {key}")
    return checked


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _checked(hint: Any, value: Any, where: str) -> Any:
    """`value` as the hint's type; strict, except that a whole number may stand for a float."""
    try:
        return _convert(hint, value, where)
    except TypeError:
        raise ConfigError(f"{where} is {value!r}, expected {_describe(hint)}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The converted value.

    Raises: TypeError when it does not fit; ConfigError for something inside a nested config.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        return _require(value in args and type(value) in {type(arg) for arg in args}, value)
    if origin in (tuple, list, Sequence):
        return _convert_items(origin, args, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _require(isinstance(value, Mapping), value)
        return from_dict(hint, value, where)
    if hint is Path:
        return Path(_require(isinstance(value, str), value)).expanduser()
    if hint is float:
        return float(_require(type(value) in (int, float), value))
    if hint in (bool, int, str):
        return _require(type(value) is hint, value)
    if hint is type(None):
        return _require(value is None, value)
    raise AssertionError(f"{where}: a config field cannot have the type {hint}")


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    for arg in args:
        with contextlib.suppress(TypeError):
            return _convert(arg, value, where)
    raise TypeError


def _convert_items(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    _require(isinstance(value, list | tuple), value)
    if origin is tuple and args[-1] is not Ellipsis:
        _require(len(value) == len(args), value)
        return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))
    items = [_convert(args[0], item, where) for item in value]
    return items if origin is list else tuple(items)


def _require(fits: bool, value: Any) -> Any:
    if not fits:
        raise TypeError
    return value


def _describe(hint: Any) -> str:
    """What a user may write for this type, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args if arg is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin in (tuple, list, Sequence):
        if origin is tuple and args[-1] is not Ellipsis:
            return f"{len(args)} values, each {_describe(args[0])}"
        return f"a list, each item {_describe(args[0])}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(hint) or {str: "text", Path: "a path"}.get(hint, str(hint))


def _to_json(value: Any) -> Any:
    if _is_config(value):
        return to_json_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------ the flags

# How tyro words what went wrong, inside a box; a wording we do not know is shown as it is.
_UNEXPECTED = re.compile(r"Unrecognized options: (.+)")
_BAD_VALUE = re.compile(r"Error parsing (\S+): |invalid choice '.*' for argument '(\S+)'\.")
_NO_VALUE = re.compile(r"Missing value for argument '(\S+)'|Missing from .*?: (\S+)")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")


def _parse_flags(
    config_type: type[C], argv: Sequence[str], default: C | None, prog: str, description: str | None
) -> C:
    """What tyro makes of the flags.  Its errors are boxes of many lines; here they are one."""
    try:
        with contextlib.redirect_stderr(io.StringIO()) as box:
            return _run_tyro(config_type, argv, default, prog, description)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise _own_error(stop) or ConfigError(
            f"{_problem(config_type, argv, default, box.getvalue())} ({prog} --help explains)"
        ) from None


def _run_tyro(
    config_type: type[C], argv: Sequence[str], default: C | None, prog: str, description: str | None
) -> C:
    import tyro  # 0.1 s: not paid by `nanochat --help`

    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.PositionalMetavarFromFieldName,)
    config: C = tyro.cli(
        config_type, args=list(argv), prog=prog, description=description, config=markers, **given
    )
    return config


def _own_error(stop: SystemExit) -> NanochatError | None:
    """What the config's own checks raised: tyro catches a ValueError and exits from its handler."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, NanochatError):
        error = error.__context__
    return error


def _problem(config_type: type[Any], argv: Sequence[str], default: Any, box: str) -> str:
    """The first problem in one line: the fact with its value, and what was expected."""
    text = _box_text(box)
    if unknown := _unknown_flag(config_type, argv, default):
        return unknown
    if match := _UNEXPECTED.match(text):
        return f"unexpected argument {match[1]!r}"
    if match := _BAD_VALUE.match(text):
        name = match[1] or match[2]
        return f"{name} is {_value_after(name, argv)!r}, expected {_expected(config_type, name)}"
    if match := _NO_VALUE.match(text):
        name = match[1] or match[2]
        return f"{name} has no value, expected {_expected(config_type, name)}"
    return text


def _box_text(box: str) -> str:
    """The first words under the title of tyro's box (drawn, or plain ASCII), on one line."""
    _, *lines = box.splitlines()
    for is_rule, group in itertools.groupby((line.strip("\u2502 ") for line in lines), _is_rule):
        if not is_rule and (text := " ".join(" ".join(group).split())):
            return text
    return "the arguments are not understood"


def _is_rule(line: str) -> bool:
    return len(line) > 3 and set(line) <= {"\u2500", "-"}


def _unknown_flag(config_type: type[Any], argv: Sequence[str], default: Any) -> str:
    """The first token that looks like a flag but is none, with the nearest flag; or nothing."""
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        _run_tyro(config_type, ["--help"], default, "", None)
    known = set(_FLAG.findall(page.getvalue()))
    for token in argv:
        if token == "--":
            break
        name = token.partition("=")[0]
        if _FLAG.fullmatch(name) and name.replace("_", "-") not in known:
            return f"unknown flag {name}{nearest(name, known)}"
    return ""


def _value_after(names: str, argv: Sequence[str]) -> str:
    """What the user gave for a flag (-p/--prompt); empty for a positional argument."""
    for index, token in enumerate(argv):
        flag, equals, value = token.replace("_", "-").partition("=")
        if flag in names.split("/"):
            rest = itertools.takewhile(lambda word: not _FLAG.fullmatch(word), argv[index + 1 :])
            return token.partition("=")[2] if equals else " ".join(rest)
    return ""


def _expected(config_type: type[Any], name: str) -> str:
    """What a flag (--sampling.top-k) or a positional argument (MODEL) takes, in words."""
    hint: Any = config_type
    for part in name.rpartition("/")[2].lstrip("-").lower().replace("-", "_").split("."):
        hint = typing.get_type_hints(hint).get(part, str)
    return _describe(hint)
