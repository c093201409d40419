"""WHAT IS KEPT OF A CORPUS.   in: texts   out: clean texts, hashes, hits, groups of duplicates
who calls: batches/prepare*.py

Pure functions over texts and numpy arrays: no files, no processes, no torch.  The stages that run
them over a corpus are in batches/prepare.py.
Read next: clean.py, words.py, near.py, contamination.py, duplicates.py.
"""
