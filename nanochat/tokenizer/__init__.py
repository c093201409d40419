"""TEXT <-> TOKENS.   in: text, conversations   out: token ids, Rendered
who calls: every room above

No torch here: the server's tests and `nanochat tokenizer` start without it.
Read next: tokenizer.py, then chat.py.
"""
