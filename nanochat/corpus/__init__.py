"""TEXT.   in: files, or nothing (the built-in world)   out: Document, Conversation
who calls: batches, evals, cli
"""
