"""The parity folders -> tokenizer_*.json, tokenizer.pkl beside this file.   in: the folder `shared`
out: what the reference computes, stored once: the five generations agree in everything here

Run `python -m tests.golden.tokenizer ../shared` after the parity folders changed; review the diff.
Read next: tests/tokenizer/test_parity.py (who reads these).
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEYS = ("encodings", "conversations", "token_bytes", "special_tokens")
# Latin with marks that could be lost; the other scripts are all there, one text each.
LATIN = ("vie", "pol", "tur", "yor", "isl", "hun", "lit", "ces", "por", "hau", "mlt", "nav")


def figures(folder: Path) -> dict[str, Any]:
    """The tokenizer's part of one folder's expected.json."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return {key: expected[key] for key in KEYS}


def generations(shared: Path) -> list[Path]:
    """The five folders, oldest first."""
    return sorted((shared / "parity").glob("v?-*"))


def multilingual(shared: Path) -> dict[str, str]:
    """How the Declaration of Human Rights begins: a text per script, a few more in Latin."""
    chosen: dict[str, str] = {}
    seen = {"Latn"}
    path = shared / "data" / "text" / "multilingual" / "udhr.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if line["script"] not in seen or line["lang"] in LATIN:
                seen.add(line["script"])
                chosen.setdefault(f"{line['lang']}-{line['script']}", line["text"][:240])
    return dict(sorted(chosen.items()))


def main(shared: Path) -> None:
    """Write all three files."""
    folders = generations(shared)
    first = figures(folders[0])
    pickled = (folders[0] / "base/tokenizer/tokenizer.pkl").read_bytes()
    for folder in folders[1:]:
        assert figures(folder) == first, f"{folder} differs from {folders[0]}"
        assert (folder / "base/tokenizer/tokenizer.pkl").read_bytes() == pickled, f"{folder}"
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in first.items()]
    (HERE / "tokenizer_figures.json").write_text(
        "{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8"
    )
    (HERE / "tokenizer.pkl").write_bytes(pickled)
    (HERE / "tokenizer_multilingual.json").write_text(
        json.dumps(multilingual(shared), ensure_ascii=False, indent=0) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
