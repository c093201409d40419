"""What was removed, and why.   in: facts of all stages   out: report.json's content, lines to read
who calls: prepare.py (builds), cli/data_prepare.py, cli/data_show.py (show)

Texts of a corpus are shown to whoever asks for the report: what shows it makes them harmless for a
terminal.
Read next: prepare.py (the stages), docs/data.md (an example).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.batches.prepare_duplicates import Pieces, Removal
from nanochat.batches.prepare_piece import NUM_EXAMPLES, PieceFacts, piece_directory, snippet
from nanochat.batches.shards import Shard
from nanochat.batches.store import token_dtype
from nanochat.corpus.pieces import Piece, place_of
from nanochat.corpus.prepare.contamination import EvaluationSets
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["CorpusFacts", "build_report", "report_lines"]

SNIPPET_TOKENS = 60
EVALUATION_FILES_SHOWN = 12
LENGTHS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """What the report is made from, beside what was removed."""

    rule: str
    """How the validation documents were chosen."""
    pieces: Sequence[Piece]
    facts: Sequence[PieceFacts]
    tokenizer: Tokenizer
    evaluation: EvaluationSets | None
    evaluation_left_out: tuple[str, ...]
    """Files beside them that were not compared with."""
    removes_contaminated: bool
    threshold: float
    duplicates: str


def build_report(
    corpus: CorpusFacts,
    pieces: Pieces,
    removal: Removal,
    shards: Mapping[str, Sequence[Shard]],
) -> dict[str, Any]:
    """The report as JSON: what was read, what went at which step and why, what is left."""
    left_out: Counter[str] = Counter()
    examples: dict[str, list[Any]] = {}
    for facts in corpus.facts:
        left_out.update(facts.left_out)
        for reason, some in facts.examples.items():
            examples[reason] = (examples.get(reason, []) + list(some))[:NUM_EXAMPLES]
    return {
        "read": {
            "files": len({span.path for piece in corpus.pieces for span in piece.spans}),
            "texts": sum(facts.num_read for facts in corpus.facts),
            "characters": sum(facts.num_read_characters for facts in corpus.facts),
            "tokens": sum(facts.num_tokens for facts in corpus.facts),
        },
        "cleaned": {
            "changed": sum(facts.num_changed for facts in corpus.facts),
            "left_out": dict(sorted(left_out.items())),
            "examples": examples,
        },
        "evaluation": _evaluation(corpus, pieces, removal),
        "duplicates": _duplicates(corpus, pieces, removal),
        "kept": {part: _kept(pieces, part, shards[part]) for part in shards},
        "held_out": corpus.rule,
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person: a table of steps, then examples."""
    return [*_table(report), *_evaluation_lines(report["evaluation"]), *_example_lines(report)]


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    read, cleaned, kept = report["read"], report["cleaned"], report["kept"]
    steps: list[tuple[str, int, str]] = [
        ("read", read["texts"], f"{read['files']:,} files, {read['characters']:,} characters")
    ]
    steps += [(f"  {reason}", -count, "") for reason, count in cleaned["left_out"].items()]
    evaluation, duplicates = report["evaluation"], report["duplicates"]
    if evaluation["is_removed"]:
        steps.append(("  words of evaluation sets", -evaluation["documents"], ""))
    if duplicates["mode"] != "keep":
        steps.append(("  equal to an earlier one", -duplicates["equal"], ""))
    if duplicates["mode"] == "remove":
        steps.append(
            (
                f"  {duplicates['threshold']:.0%} like an earlier one, or more",
                -duplicates["alike"],
                "",
            )
        )
    for part, facts in kept.items():
        steps.append((part, facts["documents"], f"{facts['tokens']:,} tokens"))
    width = max(len(name) for name, _, _ in steps)
    numbers = max(len(f"{count:,}") for _, count, _ in steps)
    for name, count, about in steps:
        yield f"{name:<{width}}  {count:>{numbers},}  {about}".rstrip()
    yield f"{cleaned['changed']:,} texts were changed by cleaning; {report['held_out']}"
    for part, facts in kept.items():
        lengths = ", ".join(f"{share} {length:,}" for share, length in facts["lengths"].items())
        yield (
            f"{part}: {facts['shards']:,} shards, {facts['characters_per_token']:.2f} characters a "
            f"token; tokens of a document: {lengths}"
        )


def _evaluation_lines(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if not evaluation["files"]:
        yield "evaluation sets: none were here to compare with (--decontaminate DIR)"
        return
    what = "removed" if evaluation["is_removed"] else "kept (--remove-contaminated removes them)"
    yield (
        f"evaluation sets: {evaluation['documents']:,} documents have words of "
        f"{evaluation['entries_found']:,} of {evaluation['entries']:,} entries; {what}"
    )
    found = [each for each in evaluation["files"] if each["documents"]]
    found.sort(key=lambda each: (-each["documents"], each["file"]))
    for each in found[:EVALUATION_FILES_SHOWN]:
        yield (
            f"  {each['file']}: {each['entries_found']:,} of {each['entries']:,} entries, "
            f"in {each['documents']:,} documents"
        )
    if len(found) > EVALUATION_FILES_SHOWN:
        yield f"  and {len(found) - EVALUATION_FILES_SHOWN} more files, in report.json"
    if left_out := evaluation.get("left_out"):  # older reports do not say
        more = ", ..." if len(left_out) > EVALUATION_FILES_SHOWN else ""
        names = ", ".join(left_out[:EVALUATION_FILES_SHOWN]) + more
        yield f"  not compared with: {len(left_out):,} files for training or of downloads ({names})"


def _example_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for reason, some in report["cleaned"]["examples"].items():
        for place, text in some[:1]:
            yield f"example, {reason}: {place}: {text}"
    for each in report["evaluation"]["examples"][:2]:
        yield f"example, words of {each['file']}: {each['place']}: {each['text']}"
    duplicates = report["duplicates"]
    for name in ("equal", "alike"):
        for each in duplicates[f"{name}_examples"][:1]:
            degree = f"{each['alike']:.0%} alike" if "alike" in each else "equal"
            yield f"example, {degree}: {each['place']}, and {each['other']}: {each['text']}"


def _evaluation(corpus: CorpusFacts, pieces: Pieces, removal: Removal) -> dict[str, Any]:
    sets = corpus.evaluation
    if sets is None:
        return {
            "files": [], "left_out": [], "entries": 0, "entries_found": 0, "documents": 0,
            "is_removed": False, "examples": [],
        }  # fmt: skip
    file_of = sets.file_of(np.arange(sets.num_entries))
    is_found = np.zeros(sets.num_entries, bool)
    documents = np.zeros(len(sets.files), np.int64)
    examples: list[dict[str, str]] = []
    for piece, hits in _hits(pieces):
        is_found[hits[:, 1]] = True
        pairs = np.unique(np.stack([hits[:, 0], file_of[hits[:, 1]]], axis=1), axis=0)
        documents += np.bincount(pairs[:, 1], minlength=len(sets.files))
        start = int(pieces.ends[piece]) - pieces.counts[piece]
        for number, file in pairs[: NUM_EXAMPLES - len(examples)].tolist():
            place, text = _shown(corpus, pieces, start + number)
            examples.append({"file": sets.files[file], "place": place, "text": text})
    entries = np.bincount(file_of, minlength=len(sets.files))
    entries_found = np.bincount(file_of[is_found], minlength=len(sets.files))
    return {
        "files": [
            {
                "file": name,
                "entries": int(entries[number]),
                "entries_found": int(entries_found[number]),
                "documents": int(documents[number]),
            }
            for number, name in enumerate(sets.files)
        ],
        "left_out": list(corpus.evaluation_left_out),
        "entries": sets.num_entries,
        "entries_found": int(is_found.sum()),
        "documents": removal.num_contaminated,
        "is_removed": corpus.removes_contaminated,
        "examples": examples,
    }


def _duplicates(corpus: CorpusFacts, pieces: Pieces, removal: Removal) -> dict[str, Any]:
    def told(later: int, earlier: int) -> dict[str, Any]:
        place, text = _shown(corpus, pieces, later)
        return {"place": place, "other": _shown(corpus, pieces, earlier)[0], "text": text}

    return {
        "mode": corpus.duplicates,
        "threshold": corpus.threshold,
        "equal": removal.num_equal,
        "alike": removal.num_alike,
        "equal_examples": [told(*pair) for pair in removal.equal_pairs],
        "alike_examples": [
            told(later, earlier) | {"alike": alike} for later, earlier, alike in removal.alike_pairs
        ],
    }


def _kept(pieces: Pieces, part: str, shards: Sequence[Shard]) -> dict[str, Any]:
    kept = np.load(pieces.work / "duplicates" / f"kept-{part}.npy", mmap_mode="r")
    lengths = np.concatenate(
        [np.diff(offsets).astype(np.int32) for _, offsets in pieces.arrays("offsets")]
    )[kept]
    num_tokens = sum(shard.num_tokens for shard in shards)
    num_characters = sum(shard.num_characters for shard in shards)
    quantiles = np.quantile(lengths, LENGTHS, method="nearest").tolist()
    return {
        "documents": sum(shard.num_documents for shard in shards),
        "tokens": num_tokens,
        "characters": num_characters,
        "characters_per_token": num_characters / num_tokens,
        "shards": len(shards),
        "lengths": {
            f"{share:.0%}": int(length) for share, length in zip(LENGTHS, quantiles, strict=True)
        }
        | {"most": int(lengths.max())},
    }


def _hits(pieces: Pieces) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    for piece, count in enumerate(pieces.counts):
        path = piece_directory(pieces.work, piece) / "hits.npy"
        if count and path.is_file():
            hits = np.load(path)
            if len(hits):
                yield piece, hits


def _shown(corpus: CorpusFacts, pieces: Pieces, document: int) -> tuple[str, str]:
    """The place of a document in the files, and how it begins, from its tokens."""
    piece, number = pieces.place(document)
    span, where = pieces.array(piece, "places")[number].tolist()
    offsets = pieces.array(piece, "offsets")
    start = int(offsets[number]) + 1  # after <|bos|>
    stop = min(int(offsets[number + 1]), start + SNIPPET_TOKENS)
    path = piece_directory(pieces.work, piece) / "tokens.bin"
    dtype = token_dtype(corpus.tokenizer.vocab_size)
    tokens = np.memmap(path, dtype=dtype, mode="r")[start:stop]
    text = corpus.tokenizer.decode(tokens.tolist())
    return place_of(corpus.pieces[piece].spans[span].path, where), snippet(text)
