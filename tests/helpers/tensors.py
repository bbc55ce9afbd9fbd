"""Comparing tensors."""

import torch


def same_bits(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
