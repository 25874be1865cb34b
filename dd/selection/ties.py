"""Ties: among equally good candidates, the one with the lowest index is chosen."""

import torch
from torch import Tensor

TIE = 1e-12
"""Float64 values closer than this share of the largest magnitude are equal: they differ by rounding only."""


def first_best(values: Tensor) -> int:
    """The lowest index of the largest of (n,) float64 values, ties included; -inf marks what cannot be chosen.

    Rounding depends on how a matrix product is split, so that equal rows may get values that differ in the last bit.
    """
    finite = values[values > -torch.inf].abs()
    tolerance = TIE * float(finite.max()) if len(finite) else 0.0
    return int((values >= values.max() - tolerance).int().argmax())
