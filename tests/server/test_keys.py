"""keys.py: who shows a key is known, nobody else, and no key is kept or told."""

from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError
from nanochat.server import keys as module
from nanochat.server.keys import MIN_KEY_LENGTH, Keys

KEYS = ("first-key-of-them", "second-key-of-them", "third: of/them+=, all")


@pytest.mark.req("FR-062")
def test_a_key_says_who_asks() -> None:
    keys = Keys(KEYS)
    tenants = [keys.tenant_of(f"Bearer {key}") for key in KEYS]
    assert len(set(tenants)) == 3 and None not in tenants
    assert keys.tenant_of(f"bearer   {KEYS[0]} ") == tenants[0]
    for shown in ("", "Bearer ", KEYS[0], f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", "Bearer x"):
        assert keys.tenant_of(shown) is None


def test_every_key_is_compared_whether_one_has_matched_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    keys = Keys(KEYS)
    for shown in (*KEYS, "another-key-altogether"):
        compared.clear()
        keys.tenant_of(f"Bearer {shown}")
        assert len(compared) == len(KEYS)


def test_neither_key_is_kept() -> None:
    keys = Keys(KEYS)
    assert repr(keys) == "Keys(3)"
    assert not any(key in repr(vars(keys)) for key in KEYS)


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n\n  {KEYS[0]}\n{KEYS[1]}\n")
    keys = Keys.from_file(path)
    assert keys.tenant_of(f"Bearer {KEYS[1]}") is not None
    assert keys.tenant_of("Bearer # of the team") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# none\n", "no key there"),
        (b"hush-hush\n", f"a key is shorter than {MIN_KEY_LENGTH} characters"),
        (b"\xff" * 20, "it is not UTF-8"),
        ("schlüssel-mit-umlaut\n".encode(), "a key has characters beyond ASCII"),
        (b"a-key-with-a-bell-\x07\n", "a key has characters beyond ASCII"),
    ],
    ids=["none", "short", "binary", "umlaut", "control"],
)
def test_mistakes_in_a_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.from_file(tmp_path / "keys")
    assert "hush-hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file or directory, expected a key a line"):
        Keys.from_file(tmp_path / "absent")
