"""No pickle runs anything on its way to a tokenizer."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.reference import load_reference_tokenizer
from tests.attacks import ATTACKS, archive, legacy_file, tar_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"
WAYS = {
    "as it is": bytes,
    "in a .pt file": archive,
    "in an old .pt file": legacy_file,
    "in a tar": tar_file,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.req("EC-2", "FR-031", "FR-062")
def test_no_attack_runs(attack: str, way: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "tokenizer.pkl"
    path.write_bytes(WAYS[way](ATTACKS[attack](canary)))
    there = sorted(tmp_path.iterdir())
    for load in (load_reference_tokenizer, load_tokenizer):
        with pytest.raises(TokenizerError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 250
    assert sorted(tmp_path.iterdir()) == there and not canary.exists()


@given(attack=st.sampled_from(sorted(ATTACKS)), place=st.integers(0, 2**20))
@pytest.mark.req("EC-2", "FR-062")
def test_no_attack_runs_inside_a_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, attack: str, place: int
) -> None:
    """An attack put in anywhere, its own header and end left out."""
    folder = tmp_path_factory.mktemp("inside")
    canary, path = folder / "canary", folder / "tokenizer.pkl"
    content = GOLDEN.read_bytes()
    place %= len(content)
    inner = ATTACKS[attack](canary).removeprefix(b"\x80\x02")[:-1]
    path.write_bytes(content[:place] + inner + content[place:])
    try:
        load_reference_tokenizer(path)
    except TokenizerError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert not canary.exists()
