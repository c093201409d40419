"""TOKENS -> TENSORS.   in: documents, conversations   out: Batch   who calls: train, evals, cli"""
