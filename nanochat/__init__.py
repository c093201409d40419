"""nanochat: text in at one end, a chat out at the other.  The folder list is the path a token
takes.

Importing this package does not import torch.
"""

__version__ = "0.1.0"
