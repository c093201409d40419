"""nanochat pretrain --dry-run --plan-world-size N -> the table of docs/scale.md.   in: nothing
out: the page with its table written anew   who calls: scripts/docs.py
"""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from nanochat.train.display import format_duration

__all__ = ["planned", "scale_page", "scale_table"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
DEPTHS = (12, 20, 26, 32)
WORLDS = (1, 8, 64, 512)
COLUMNS = (
    *("depth", "weights", "GPUs", "rows each", "holds, GiB", "moments, GiB", "sends a step, GiB"),
    *("messages", "step, s", "of it waiting", "of N alone", "the run", "cut: holds", "cut: of N"),
)
TABLE = re.compile(r"(<!-- table: `make docs` -->\n).*?(<!-- end -->)", re.DOTALL)


def scale_page(path: Path = PAGE) -> str:
    """docs/scale.md with the figures that the command gives now."""
    return TABLE.sub(lambda match: match[1] + scale_table() + match[2], path.read_text())


def scale_table() -> str:
    """A row for every depth and number of GPUs."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    for depth in DEPTHS:
        for world in WORLDS:
            cut = planned(depth, world, "--shard-model", "on")["scale"] if world > 1 else None
            lines.append(_row(depth, planned(depth, world)["scale"], cut))
    return "\n".join(lines) + "\n"


def planned(depth: int, world: int, *more: str) -> dict[str, Any]:
    """What the command prints for so many H100s: `plan` and `scale`."""
    from nanochat.cli.main import main

    words = ["pretrain", "--dry-run", "--json", "--device", "cpu", "--depth", str(depth)]
    words += ["--plan-world-size", str(world), "--plan-device", "h100", *more]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    assert code == 0, errors.getvalue()
    told: dict[str, Any] = json.loads(printed.getvalue())
    return told


def _row(depth: int, scale: dict[str, Any], cut: dict[str, Any] | None) -> str:
    rows = f"{scale['rows']}"
    if scale["num_parts"] > 1:
        rows += f" in {scale['num_parts']} parts"
    if scale["num_idle"]:
        rows += f" or 0 ({scale['num_idle']} idle)"
    cells = (
        f"{depth}",
        f"{scale['parameters'] / 1e9:.2f} G" + (", cut" if scale["is_sharded"] else ""),
        f"{scale['num_ranks']}",
        rows,
        _gib(scale["memory_bytes"]),
        _gib(scale["memory"]["moments"]),
        _gib(scale["sent_bytes"]),
        f"{scale['num_messages']:,}",
        f"{scale['step_s']:.3f}",
        f"{scale['waiting_s'] / scale['step_s']:.0%}",
        f"{scale['efficiency']:.0%}",
        format_duration(scale["num_steps"] * scale["step_s"]),
        _gib(cut["memory_bytes"]) if cut else "",
        f"{cut['efficiency']:.0%}" if cut else "",
    )
    return "| " + " | ".join(cells) + " |"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"
