"""TENSORS -> LOGITS.   in: tokens_BT   out: logits_BTV   who calls: train, checkpoint, engine,
evals

The legend of shape letters, for the whole repository.  A tensor's name ends in its shape, and one
letter has
one size within a function:

    B  rows in a batch            D  model width              V  vocabulary (rows of the tables:
    padded)
    T  positions being computed   F  width of the MLP         L  layers
    S  positions attended to      H  query heads              N  tokens laid end to end
    K  key/value heads            E  width of one head        G  channels that feed a gate
    R, C  rows and columns of any matrix (optimizer)          M  matrices of one shape, stacked
    (optimizer)

Read next: config.py, then gpt.py.
"""
