"""The contents of a file of tensors."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from dd.errors import printable

Tree: TypeAlias = "Tensor | str | bytes | bool | int | float | Sequence[Tree] | Mapping[str | int, Tree] | None"
"""Lists and dicts of tensors and plain values."""

_SHOWN = 4  # items of a list or dict that are shown


def outline(found: Tree, depth: int = 2) -> str:
    """Describe contents briefly: "a dict of data (a list of 3), epoch (a number)"."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, Mapping):
        inner = [
            f"{printable(str(key), keep='')[:30]} ({outline(one, depth - 1)})" for key, one in [*found.items()][:_SHOWN]
        ]
        return _listed(f"a dict of {len(found)}", inner, len(found), depth)
    if isinstance(found, str | bytes):
        return "a text"
    if isinstance(found, Sequence):
        inner = [outline(one, depth - 1) for one in found[:_SHOWN]]
        return _listed(f"a list of {len(found)}", inner, len(found), depth)
    return "nothing" if found is None else "a number"


def _listed(head: str, inner: list[str], count: int, depth: int) -> str:
    if depth == 0 or not inner:
        return head
    return f"{head}: {', '.join(inner)}{', ...' if count > _SHOWN else ''}"
