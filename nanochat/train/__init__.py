"""LOGITS -> WEIGHTS.   in: a stage and its batches   out: weights, metrics   who calls: cli,
bench"""
