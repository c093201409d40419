"""What a lettered question costs: counted over the same prompts on both sides."""

import json
from pathlib import Path

import pytest

from nanochat.bench import letters


@pytest.mark.req("SC-004")
def test_both_sides_read_the_same_prompts(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = next((shared_dir / "parity/core-eval/base/base_checkpoints").iterdir())
    data = shared_dir / "data/eval"
    assert letters.main([str(model), str(data), "1", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["depth"] == 1 and found["num_questions"] == 3 and found["prompt_tokens"] > 60
    ratio = found["seconds_per_question"] / found["seconds_per_forward"]
    assert found["forwards_per_question"] == pytest.approx(ratio) and ratio > 0
