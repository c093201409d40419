"""Ray prepares the same bytes as processes do.  One cluster, started once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.batches.prepare import prepare
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.pool import InTurn, RayCluster, open_executor
from tests.batches.test_prepare import Corpus
from tests.optional import needs_ray

needs_ray()
pytestmark = [
    pytest.mark.req("FR-032"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of every kind
]


def double(number: int) -> int:
    if number == 99:
        raise DataError("file, line 99: not JSON")
    return 2 * number


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster("local", 2) as executor:
        yield executor


def test_results_are_in_order_and_errors_are_ours(cluster: RayCluster) -> None:
    assert cluster.name == "Ray with 2 processors"
    assert list(cluster.map(double, range(20))) == [2 * number for number in range(20)]
    with pytest.raises(DataError, match="line 99: not JSON"):
        list(cluster.map(double, [1, 99]))


def test_ray_prepares_the_same_bytes(cluster: RayCluster, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    settings = corpus.settings(removes_contaminated=True)
    here = prepare(settings, tmp_path / "here", InTurn())
    there = prepare(settings, tmp_path / "there", cluster)
    assert there.train.fingerprint == here.train.fingerprint
    assert there.validation.fingerprint == here.validation.fingerprint
    for told in ("read", "cleaned", "evaluation", "duplicates", "kept"):
        assert there.report[told] == here.report[told]
    found = there.report["duplicates"]
    assert (found["equal"], found["alike"]) == (len(corpus.equal), len(corpus.alike))
    assert there.report["evaluation"]["documents"] == len(corpus.contaminated)
    for path in sorted((tmp_path / "here").glob("*/0*/*")):
        same = tmp_path / "there" / path.relative_to(tmp_path / "here")
        assert same.read_bytes() == path.read_bytes()


def test_no_cluster_is_told() -> None:
    assert isinstance(open_executor(None, "local"), RayCluster)
    with (
        pytest.raises(ConfigError, match=r"no Ray cluster answers .* expected the address"),
        RayCluster("127.0.0.1:1"),
    ):
        pass
