"""WEIGHTS <-> DISK.   in: a model reference   out: GPT, Tokenizer   who calls: engine, train,
evals, cli"""
