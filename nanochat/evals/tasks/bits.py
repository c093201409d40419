"""Bits per byte: how well a text is predicted.   in: text/ of the data folder   out: Task
who calls: tasks/__init__.py   (imports no torch)

(sum of -log2 p of every token) / (bytes of the text), so that vocabularies compare.  Every document
begins with <|bos|>, and so does every stretch of a context of a longer one.  Of several Parquet
shards the last is taken: it is the one that training holds out.
Read next: examinee.py (windows, bits_verdict), train/loss.py (the same while training).
"""

from nanochat.common.errors import DataError
from nanochat.corpus.documents import read_documents
from nanochat.corpus.files import ReadReport
from nanochat.evals.task import Sample, Selection, Task

__all__ = ["BITS_PER_BYTE"]


def _load(selection: Selection) -> list[Sample]:
    folder = selection.source.folder("text")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    shards = [path for path in files if path.suffix == ".parquet"]
    chosen = shards[-1:] or files
    if not chosen:
        raise DataError(f"{folder} has no file to read")
    for path in chosen:
        selection.source.note(f"text/{path.name}", path)
    report = ReadReport()
    samples: list[Sample] = []
    for number, document in enumerate(read_documents(chosen, report=report)):
        if len(samples) == selection.limit:
            break
        if document.text:
            samples.append(Sample(sample_id=f"{number}", prompt=document.text))
    return samples


BITS_PER_BYTE = Task(name="bits_per_byte", version="1", kind="bits_per_byte", load=_load)
