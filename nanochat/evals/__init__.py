"""WEIGHTS -> SCORES.   in: an engine and questions   out: verdicts, samples, report.html
who calls: cli, train

Importing this package does not import torch.
Read next: exam.py (questions -> verdicts), report.py (numbers -> one page), curves.py (its charts).
"""
