"""The floor.   in: nothing of ours   out: errors, settings, files, device, messages, sandbox
who calls: every room

Nothing here knows what a language model is.  Torch is imported by `device` alone.
"""
