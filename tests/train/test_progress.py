"""Where a run stands."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import CheckpointError
from nanochat.train.progress import Progress, from_plain, to_plain


@given(st.sets(st.integers(0, 40)), st.integers(0, 30))
@pytest.mark.req("FR-020")
def test_the_batch_of_a_step(skipped: set[int], step: int) -> None:
    """Against the plain definition: the step-th number that is not skipped."""
    left = [number for number in range(100) if number not in skipped]
    assert Progress(skipped=tuple(sorted(skipped))).batch_number(step) == left[step]


@pytest.mark.req("FR-020", "EC-8")
def test_going_back_passes_over_what_was_tried() -> None:
    tried = Progress(step=9, skipped=(2, 7), discarded=(8, 9)).without_update_of(10)
    back = tried.gone_back(Progress(step=5, skipped=(2,)))
    assert (back.step, back.num_returns, back.discarded) == (5, 1, (8, 9, 10))
    # steps 5 to 8 had the batches 6, 8, 9, 10 (2 and 7 being skipped)
    assert back.skipped == (2, 6, 7, 8, 9, 10)
    assert back.batch_number(5) == 11 and back.advanced().step == 6


@given(
    st.builds(
        Progress,
        step=st.integers(0, 10**9),
        skipped=st.sets(st.integers(0, 99)).map(lambda numbers: tuple(sorted(numbers))),
        discarded=st.lists(st.integers(0, 99)).map(tuple),
        num_returns=st.integers(0, 1),
        last_row=st.none() | st.dictionaries(st.text(), st.floats(allow_nan=False), min_size=1),
    )
)
def test_there_and_back(progress: Progress) -> None:
    finite = progress.last_row and {
        name: value for name, value in progress.last_row.items() if math.isfinite(value)
    }
    written = json.dumps(progress.to_json(), allow_nan=False)
    again = Progress.from_json(json.loads(written))
    assert again.to_json() == progress.to_json()
    assert again.last_row is None or finite is None or finite.items() <= again.last_row.items()


def test_rows_without_nan() -> None:
    plain = to_plain({"loss": math.nan, "step": 3.0})
    assert plain == {"loss": None, "step": 3.0}
    assert math.isnan(from_plain(plain)["loss"])


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"step": "x"}, {"skipped": [3, 1]}, {"skipped": 5}, {"last_row": 7}]
)
@pytest.mark.req("EC-2")
def test_what_it_cannot_have_written(change: dict[str, object]) -> None:
    good = Progress(step=3).to_json()
    with pytest.raises(CheckpointError, match="progress"):
        Progress.from_json(good | change)
    del good["skipped"]
    with pytest.raises(CheckpointError, match="skipped"):
        Progress.from_json(good)
