"""What is in a file of tensors."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

Tree: TypeAlias = "Tensor | str | bytes | bool | int | float | Sequence[Tree] | Mapping[str | int, Tree] | None"
"""Lists and dicts of tensors and plain values."""
