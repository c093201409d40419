"""Memory does not grow with the text: the short form of scripts/soak_data.py."""

import json
import sys
from pathlib import Path

import pytest

from nanochat.corpus.documents import read_documents
from scripts import soak_data
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.req("FR-035", "EC-7"), pytest.mark.timeout(5 * PATIENCE_S)]

if not Path("/proc/self/status").exists():
    pytest.skip("memory without file pages is told by Linux alone", allow_module_level=True)

LIMIT_GB = 0.6  # torch takes a third of it before the first step; a text of 60 MB, none
PREPARING_MB = 200


def test_the_text_is_as_large_as_asked_for(tmp_path: Path) -> None:
    num_documents = soak_data.write_corpus(tmp_path / "corpus", 3_000_000)
    size = sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir())
    assert 3_000_000 <= size < 6_000_000
    texts = [document.text for document in read_documents([tmp_path / "corpus"])]
    assert len(set(texts)) == len(texts) == num_documents
    soak_data.save_tokenizer(tmp_path / "corpus", tmp_path / "tokenizer.json")


def test_the_limit_holds_for_every_process() -> None:
    program = "import subprocess, sys, time; x = bytearray(int(sys.argv[1])); time.sleep(3)"
    started = f"[sys.executable, '-c', {program!r}, sys.argv[1]]"
    child = f"import subprocess, sys; subprocess.check_call({started})"
    fits = soak_data.bounded([sys.executable, "-c", child, "100000000"], 300_000_000)
    assert fits.code == 0 and fits.peak_bytes > 100_000_000
    assert len(fits.peak_processes) == 2 and fits.to_json(300_000_000)["ok"]
    assert not fits.to_json(50_000_000)["ok"]
    too_much = soak_data.bounded([sys.executable, "-c", child, "400000000"], 300_000_000)
    assert too_much.code != 0 and "MemoryError" in too_much.output
    assert not too_much.to_json(300_000_000)["ok"]


@pytest.mark.slow
def test_training_and_preparing_stay_within_a_small_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--limit-gb", str(LIMIT_GB), "--num-steps", "8", "--chapter-chars", "4000000"]
    code = soak_data.main(["--gigabytes", "0.06", *words, "--parts", "pretrain", "prepare"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    assert set(told["parts"]) == {"pretrain", "prepare"}
    assert max(told["parts"]["prepare"]["processes_mb"]) < PREPARING_MB


def test_reading_eight_times_the_text_takes_no_more(tmp_path: Path) -> None:
    peaks = []
    for name, num_bytes in (("small", 3_000_000), ("large", 24_000_000)):
        folder = tmp_path / name
        soak_data.write_corpus(folder / "corpus", num_bytes)
        soak_data.save_tokenizer(folder / "corpus", folder / "tokenizer.json")
        read = soak_data.stream(folder / "corpus", folder, 600_000_000, 1_000_000)
        assert read["ok"] and read["num_tokens"] > num_bytes / 10, read
        peaks.append(read["peak_mb"])
    assert peaks[1] < peaks[0] + 8, peaks
