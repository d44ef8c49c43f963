"""Smaller models inside a model: which weights or channels a client holds, trains or sends.

Single weights: `pruning` says which ones stay, `powered` makes small ones smaller.
Whole channels: `channels` knows what belongs to each, `topology` which layer feeds which, `slicing`
cuts them out for good; `narrow` takes fewer of them, and `nested` lets rows learn through such
sub-models; `selection` says which ones a client sends, and `agent` learns how many.
Either, and quantized or low-rank weights, for devices that can hold no more: `compress`.
"""
