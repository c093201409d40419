"""The run that all jobs of this folder are compared with."""

from pathlib import Path

import pytest

from nanochat.tokenizer.tokenizer import Tokenizer
from tests.deploy.jobs import Undisturbed, undisturbed


@pytest.fixture(scope="session")
def expected(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Losses of two ranks that nobody disturbs, and the tokenizer that they used."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(folder, tiny_tokenizer)
