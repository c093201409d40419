"""TOKENS -> HTTP.   in: an engine   out: an ASGI app   who calls: cli   (no torch)"""
