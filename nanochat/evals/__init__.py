"""WEIGHTS -> SCORES.   in: an engine and samples   out: verdicts   who calls: train, cli"""
