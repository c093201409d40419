"""--data DIR -> what was prepared there.   in: paths   out: stores and their tokenizer, or None
who calls: cli/pretrain.py, cli/chat_stage.py   (imports no torch)

One directory is read as it is; several, of one tokenizer, are one corpus.  Prepared and raw text
are not mixed: duplicates between them would not be known.
Read next: shards.py (what a directory holds), prepare.py (who writes it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.batches.mixture import Mixture, Source, TokenizedStore
from nanochat.batches.prepare_place import is_begun
from nanochat.batches.shards import PreparedStore, is_prepared
from nanochat.common.errors import ConfigError, DataError

__all__ = ["PreparedText", "open_prepared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedText:
    """What `nanochat data prepare` left, ready to be trained on."""

    tokenizer: Path
    rule: str
    """A line for the plan."""
    train: TokenizedStore
    validation: TokenizedStore


def open_prepared(
    data: Sequence[str], val_data: Sequence[str] = (), tokenizer_hash: str | None = None
) -> PreparedText | None:
    """The prepared directories of `data`; None where none of it is one.

    Raises: ConfigError where something else is beside them; DataError for a directory that is not
            complete, or of another tokenizer.
    """
    directories = [Path(each).expanduser() for each in data]
    for directory in directories:
        if is_begun(directory) and not is_prepared(directory):
            raise DataError(
                f"{directory} is being prepared, or was stopped: the same nanochat data prepare "
                "goes on with it"
            )
    others = [str(path) for path in directories if not is_prepared(path)]
    if len(others) == len(directories):
        return None
    if others or val_data:
        what = f"{others[0]} is not" if others else f"--val-data {val_data[0]} is given too"
        raise ConfigError(
            f"a part of the data is prepared, {what}: prepare all of it with nanochat data prepare"
        )
    first = PreparedStore.open(directories[0])
    wanted = tokenizer_hash or first.tokenizer_hash
    rule = f"{', '.join(map(str, directories))}, prepared, with what was held out there"

    def opened(part: str) -> TokenizedStore:
        stores = [PreparedStore.open(directory, part, wanted) for directory in directories]
        return _together(stores, directories)

    return PreparedText(
        tokenizer=directories[0] / "tokenizer.json",
        rule=rule,
        train=opened("train"),
        validation=opened("validation"),
    )


def _together(stores: Sequence[PreparedStore], directories: Sequence[Path]) -> TokenizedStore:
    if len(stores) == 1:
        return stores[0]
    names = [path.name for path in directories]
    if len(set(names)) < len(names):
        names = list(map(str, directories))
    named = zip(names, stores, strict=True)
    return Mixture([Source(name=name, store=store) for name, store in named])
