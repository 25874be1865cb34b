"""Render the images of a distilled set as a PNG."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dd.sets.distilled import DistilledSet


def png(distilled: "DistilledSet") -> bytes | None:
    """The first images of the first classes as a PNG; None if the set has no images or no classes for them."""
    from dd.runs.pictures import SHOWN, contact_sheet

    if distilled.image_kind not in ("pixels", "tiles") or distilled.label_kind == "representations":
        return None
    own = distilled.own_classes()
    index = torch.cat([(own == c).nonzero().flatten()[:SHOWN] for c in range(min(len(distilled.classes), SHOWN))])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "set.png"
        contact_sheet(file, [("", _visible(distilled, index), own[index])], distilled.classes)
        return file.read_bytes()


def _visible(distilled: "DistilledSet", index: Tensor) -> Tensor:
    """Images at positions (m,) as pixels, 0 black and 1 white."""
    from dd.data.preprocess import Standard, from_state
    from dd.runs.pictures import stretched

    images = distilled.images[index]
    if not images.is_floating_point():
        return images.float() / 255
    if distilled.space["kind"] == Standard.kind:
        return from_state(distilled.space).invert(images).clamp(0, 1)
    return stretched(images)  # whitened: inverting ZCA would need the data
