"""PROMPT -> TOKENS.   in: Request   out: TokenEvent
who calls: evals, train, server (types only), cli

Importing this package does not import torch.
"""
