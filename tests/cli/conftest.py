"""What the tests of several verbs share."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.golden import parity


@pytest.fixture
def reference_home(tmp_path: Path) -> Path:
    """A V1 model as karpathy/nanochat keeps it: base_checkpoints/d4 and tokenizer/."""
    figures = parity.from_golden("v1")
    directory = tmp_path / "reference" / "base_checkpoints" / "d4"
    directory.mkdir(parents=True)
    torch.save(figures.weights, directory / "model_000030.pt")
    shutil.copy(figures.meta, directory / "meta_000030.json")
    (tmp_path / "reference" / "tokenizer").mkdir()
    shutil.copy(parity.HERE / "tokenizer.pkl", tmp_path / "reference" / "tokenizer")
    return tmp_path / "reference"
