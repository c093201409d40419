"""TOKENS -> HTTP.   in: an engine, a tokenizer   out: a FastAPI app   who calls: cli.serve

The app is handed an engine and imports no torch.  Its API is OpenAI's, errors included; the page in
nanochat/web is one more client of it.
Read next: app.py (routes), requests.py and responses.py (bodies), errors.py (one table), stream.py
(events -> HTTP).
"""
