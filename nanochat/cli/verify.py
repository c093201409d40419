"""nanochat verify   in: a model   out: a table of its files and what was checked; 2 if refused
who calls: cli.main

Read next: checkpoint/examine.py (the checks).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from nanochat.cli.terminal import neutralize
from nanochat.common.config import CommonOptions

if TYPE_CHECKING:
    from nanochat.checkpoint.examine import Finding

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Check every file of a model against its manifest, and what is in it against its config.

    The newest checkpoint is looked at, whole or not; exit code 2 if anything is refused.
    """

    model: tyro.conf.Positional[str]
    """A run (d12, d12/sft, d12/sft@1500), or a directory."""
    every: bool = False
    """Check every checkpoint of the stage, not the newest alone."""


def run(config: Config) -> int:
    """0 if all that was checked is in order, else 2.

    Raises: CheckpointError if the name leads to no checkpoint.
    """
    from nanochat.checkpoint.examine import examine
    from nanochat.checkpoint.resolve import candidates

    paths = candidates(config.model, config.home)
    results = [(path, examine(path)) for path in (paths if config.every else paths[:1])]
    is_valid = not any(finding.is_refused for _, findings in results for finding in findings)
    if config.json:
        print(
            json.dumps(
                {
                    "model": config.model,
                    "is_valid": is_valid,
                    "checkpoints": [
                        {"path": str(path), "checks": [asdict(finding) for finding in findings]}
                        for path, findings in results
                    ],
                }
            )
        )
    else:
        print("\n\n".join(_table(path, findings) for path, findings in results))
    return 0 if is_valid else 2


def _table(path: Path, findings: "list[Finding]") -> str:
    rows = [("file", "bytes", "check", "result", "")]
    for finding in findings:
        size = "missing" if finding.num_bytes is None else f"{finding.num_bytes:,}"
        result = "REFUSED" if finding.is_refused else "ok"
        rows.append((finding.file, size, finding.check, result, finding.detail))
    wide = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{file:{wide[0]}}  {size:>{wide[1]}}  {check:{wide[2]}}  {result:{wide[3]}}  {detail}"
        for file, size, check, result, detail in rows
    ]
    num_refused = sum(finding.is_refused for finding in findings)
    verdict = (
        f"{num_refused} refused: this checkpoint is not used" if num_refused else "all is in order"
    )
    return neutralize("\n".join([str(path), *(line.rstrip() for line in lines), verdict]))
