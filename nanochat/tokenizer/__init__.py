"""TEXT <-> TOKENS.   in: text, conversations   out: token ids, Rendered   who calls: every room above   (no torch)"""
