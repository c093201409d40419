"""TENSORS -> LOGITS.   in: tokens_BT   out: logits_BTV   who calls: train, checkpoint, engine, evals"""
