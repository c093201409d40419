"""NUMBERS.   in: a setting and, if given, a peer   out: one JSON object   who calls: cli,
Makefile"""
