"""Which cell's settings may serve where there is none: by resolution, channels, classes and images per class."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError
from dd.recipes.tables import Cell, RecipeFile, size_distance

if TYPE_CHECKING:
    from dd.data import Kind

# Ratio of two sides up to which the settings of one resolution are a start for another: networks of this field have one
# block for every halving, so they differ by one at most.
NEAR = 2.0


def kind(dataset: str, settings: Mapping[str, Any]) -> "Kind | None":
    """What the images of a run are like under `settings`; None for a user's own, of which nothing is known beforehand.

    Args:
        dataset: name of the data set.
        settings: by dotted key; `data.size` is heeded.
    """
    from dd.data import kind_of

    found, side = kind_of(dataset), settings.get("data.size")
    return replace(found, side=side) if found and isinstance(side, int) else found


def nearest(file: RecipeFile, dataset: str, size: str, images: "Kind | None") -> Cell | None:
    """The cell closest to one that is missing, or None where none is near.

    Cells of the same data set come first, then those of as many channels, then those of the most similar resolution,
    number of classes and size.  A cell of images more than twice as large or small is not near; where images differ in
    size and none is asked for, only cells that say one are.

    Args:
        file: the recipes of the method.
        dataset: what is asked for.
        size: "ipc10" or "fraction0.1"; of uneven classes, their mean.
        images: what its images are like; None where nothing is known.
    """
    if images is None:
        return None
    found: list[tuple[tuple[float, ...], Cell]] = []
    for cell in file.cells.values():
        settings = settings_of(file, cell)
        theirs = kind(cell.dataset, settings) if cell.preset is None else None
        if theirs is None or (images.side is None and "data.size" not in settings):
            continue
        if (larger := _apart(images.side, theirs.side)) <= math.log(NEAR):
            others = cell.dataset != dataset, theirs.channels != images.channels
            far = larger, _apart(images.classes, theirs.classes), size_distance(cell.size, size)
            found.append(((*others, *far), cell))
    return min(found, key=lambda pair: pair[0], default=(None, None))[1]


def require_alike(file: RecipeFile, like: Cell, dataset: str, images: "Kind | None") -> None:
    """Raise `UsageError` where `like=` names a cell of images that have neither channels nor resolution in common."""
    theirs = kind(like.dataset, settings_of(file, like))
    if images is None or theirs is None or theirs.channels == images.channels:
        return
    if theirs.side is None or images.side is None or _apart(images.side, theirs.side) > math.log(NEAR):
        raise UsageError(
            f"like={like.name}: its settings are for {_words(theirs)}, {dataset} has {_words(images)}; "
            "take a cell of similar images, or give settings of your own"
        )


def settings_of(file: RecipeFile, cell: Cell) -> dict[str, Any]:
    """What a cell's tables say together, by dotted key."""
    merged: dict[str, Any] = {}
    for _, settings in file.layers(cell.dataset, cell.size, cell.preset):
        merged |= settings
    return merged


def _apart(one: int | None, other: int | None) -> float:
    """The logarithm of a ratio; 0 where one of the two is open."""
    return abs(math.log(one / other)) if one and other else 0.0


def _words(images: "Kind") -> str:
    side = f"{images.side} pixels" if images.side else "many sizes"
    return f"{'grey' if images.channels == 1 else 'colour'} images of {side}"
