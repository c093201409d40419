"""env.py: the environment is read in one place and explained in one page."""

import re
from pathlib import Path

import pytest

from nanochat.common.env import (
    VARIABLES,
    api_key_from_env,
    api_keys_from_env,
    home_from_env,
    hub_url,
    is_debug,
    is_offline,
)
from nanochat.common.errors import ConfigError
from tests.conftest import REPOSITORY


def test_home_is_expanded_and_empty_is_unset(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home_from_env() == home
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_HOME", "~/models")
    assert home_from_env() == tmp_path / "models"
    monkeypatch.setenv("NANOCHAT_HOME", "")
    assert home_from_env() is None


def test_keys_are_separated_by_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_keys_from_env() == []
    monkeypatch.setenv("NANOCHAT_API_KEYS", "one, two\nthree,")
    assert api_keys_from_env() == ["one", "two", "three"]


def test_the_key_of_a_client_is_read_from_the_variable_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert api_key_from_env() is None
    monkeypatch.setenv("NANOCHAT_API_KEY", "mine")
    monkeypatch.setenv("OTHER", "")
    assert api_key_from_env() == "mine"
    with pytest.raises(ConfigError, match="OTHER is not set"):
        api_key_from_env("OTHER")
    monkeypatch.setenv("OTHER", "theirs")
    assert api_key_from_env("OTHER") == "theirs"


def test_debug_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_debug()
    monkeypatch.setenv("NANOCHAT_LOG", "debug")
    assert is_debug()
    monkeypatch.setenv("NANOCHAT_LOG", "loud")
    with pytest.raises(ConfigError, match="NANOCHAT_LOG is 'loud', expected info or debug"):
        is_debug()


def test_the_hub_and_whether_it_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert hub_url() == "https://huggingface.co" and not is_offline()
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    assert hub_url() == "http://mirror"
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    with pytest.raises(ConfigError, match="HF_ENDPOINT is 'mirror', expected an address"):
        hub_url()
    for name in ("HF_HUB_OFFLINE", "NANOCHAT_OFFLINE"):
        monkeypatch.setenv(name, "0")
        assert not is_offline()
        monkeypatch.setenv(name, "1")
        assert is_offline()
        monkeypatch.delenv(name)


def test_every_variable_is_read_here_and_explained() -> None:
    read = {
        name
        for path in (REPOSITORY / "nanochat").rglob("*.py")
        for name in re.findall(r"environ\S*[(\[]\"(NANOCHAT_\w+)", path.read_text())
    }
    assert read == set(VARIABLES)
    readers = [
        path.name
        for path in (REPOSITORY / "nanochat").rglob("*.py")
        if re.search(r"environ\S*[(\[]\"NANOCHAT_", path.read_text())
    ]
    assert readers == ["env.py"]
    page = (REPOSITORY / "docs" / "env.md").read_text().partition("Read by the setup")[0]
    assert set(re.findall(r"^\| `(NANOCHAT_\w+)`", page, re.MULTILINE)) == set(VARIABLES)
