"""The parts of a distilled set that other programs can use (pixels, classes, soft labels), and what is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dd.data import Preprocess, RealData
from dd.data.preprocess import from_state
from dd.errors import UsageError
from dd.sets import DistilledSet
from dd.sets.tiles import decode, decoded_labels
from dd.sizes import readable_size

Tiles = Literal["decoded", "kept"]
_AT_ONCE = 128  # images in memory as pixels
_EXACT = 0.01  # grey levels; float32 rounding error of bytes that were normalised and converted back
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Contents:
    """The images of a set in the order of their export; tiles of the same image are consecutive.

    Attributes:
        distilled: the set.
        data: the images that it was distilled from, opened with the settings of the set; needed for indices and
            whitened pixels.
        tiles: whether mosaics are decoded or exported as stored.
    """

    distilled: DistilledSet
    data: RealData | None = None
    tiles: Tiles = "decoded"

    def __post_init__(self) -> None:
        if self.distilled.image_kind == "schedule":
            raise UsageError("a set of kind 'schedule' is other images in every epoch, which no other form can hold")
        if self.data is None and needs_data(self.distilled):
            raise UsageError(f"this set can be exported only beside its data set, {self.distilled.source}")
        if self.data is not None:
            self.distilled.require_match(self.data)

    @property
    def factor(self) -> int:
        """Tiles per side of each image that is decoded."""
        return self.distilled.decode_factor if self.tiles == "decoded" else 1

    @property
    def n(self) -> int:
        """Number of exported images."""
        return self.distilled.n * self.factor**2

    @property
    def is_exact(self) -> bool:
        """Whether the pixels are stored as bytes."""
        return self.factor == 1 and (self.distilled.images.dtype == torch.uint8 or self._indices)

    @cached_property
    def labels(self) -> Tensor:
        """int64 (n,), the class of every image.

        Raises:
            UsageError: representations name no class.
        """
        soft = self.soft
        return self._ordered(self.distilled.labels) if soft is None else soft.argmax(1)

    @cached_property
    def soft(self) -> Tensor | None:
        """float32 (n, k), the stored labels of the set; None for hard labels and for labels of views.

        Raises:
            UsageError: representations name no class.
        """
        kind = self.distilled.label_kind
        if kind == "representations":
            raise UsageError("labels of kind 'representations' do not name a class, and no other form can hold them")
        return None if kind in ("hard", "views") else self._ordered(self.distilled.labels)

    def pixels(self) -> Iterator[Tensor]:
        """Yield batches of images: stored bytes, uint8 (b, c, h, w), or float32 from 0 (black) to 1 (white).

        Float values are not clamped.
        """
        for index in torch.arange(self.distilled.n).split(_AT_ONCE):
            yield self._piece(index)

    def bytes(self) -> Iterator[Tensor]:
        """Yield the same batches as uint8, clamped and rounded."""
        for piece in self.pixels():
            yield piece if piece.dtype == torch.uint8 else (piece * 255).round().clamp(0, 255).byte()

    def losses(self, *, eight_bits: bool, soft: str) -> list[str]:
        """Return what the export loses, one line each.

        Args:
            eight_bits: whether the format stores bytes.
            soft: where the format stores soft labels; "" if it does not.
        """
        said = [*self._of_images(eight_bits), *self._of_labels(soft)]
        return [*said, *self._of_use()]

    def _piece(self, index: Tensor) -> Tensor:
        distilled = self.distilled
        if self._indices:
            assert self.data is not None, "indices need it"
            return self.data.train.raw(distilled.images[index]).cpu()
        stored = distilled.images[index]
        if stored.dtype == torch.uint8:
            if self.factor == 1:
                return stored
            pixels = stored.float() / 255
        else:
            pixels = self._preprocess.invert(stored.to(self._preprocess.device)).cpu()
        if self.factor == 1:
            return pixels
        tiles = decode(pixels, self.factor)
        return tiles.view(-1, len(index), *tiles.shape[1:]).transpose(0, 1).flatten(0, 1)

    @property
    def _indices(self) -> bool:
        return self.distilled.image_kind == "indices"

    @cached_property
    def _preprocess(self) -> Preprocess:
        return from_state(self.distilled.space) if self.data is None else self.data.preprocess

    def _ordered(self, labels: Tensor) -> Tensor:
        """Return the labels of exported images, from those stored per image or per tile (in the order of `decode`)."""
        stored = self.distilled.n
        if self.factor == 1:
            return labels[:stored]
        every = decoded_labels(labels, self.factor, stored)
        return every.view(-1, stored, *every.shape[1:]).transpose(0, 1).flatten(0, 1)

    def _of_images(self, eight_bits: bool) -> Iterator[str]:
        distilled, factor = self.distilled, self.distilled.decode_factor
        if self._indices:
            yield f"the images at its indices are copied from {distilled.source}: its licence is that of the copies"
        if factor > 1 and self.factor > 1:
            yield f"{distilled.n:,} mosaics of {factor} x {factor} tiles are decoded to {self.n:,} images"
        elif factor > 1:
            yield f"the images are mosaics of {factor} x {factor} tiles, which a trainer has to decode"
        if distilled.space.get("kind") == "zca" and not self._indices:
            eps = distilled.space.get("eps")
            yield f"the set is meant for pixels whitened by ZCA (eps {eps}), and these are pixels before it"
        if eight_bits and not self.is_exact:
            rounded, outside = self._by_bytes()
            if rounded:
                yield "values are rounded to 8 bits per channel"
            if outside:
                yield f"{outside:.2%} of the values are darker than black or brighter than white, and are clipped"

    def _of_labels(self, soft: str) -> Iterator[str]:
        kind, views = self.distilled.label_kind, self.distilled.views
        if views is not None:
            size = f"{views.spec.epochs:,} epochs, {readable_size(views.bytes)}"
            yield f"the labels of its views ({size}) stay behind, and every image has its class alone"
        elif self.soft is not None and soft:
            yield f"soft labels ({kind}) are in {soft}; a trainer that does not read it sees the most probable class"
        elif self.soft is not None:
            yield f"soft labels ({kind}) become the most probable class"
        missing = set(range(len(self.distilled.classes))) - set(self.labels.tolist())
        if missing:
            names = ", ".join(self.distilled.classes[c] for c in sorted(missing)[:3])
            yield f"{len(missing)} of {len(self.distilled.classes)} classes have no image ({names}, …)"

    def _of_use(self) -> Iterator[str]:
        distilled, said = self.distilled, []
        if distilled.protocol:
            said.append(f"protocol {distilled.protocol.get('protocol', '')}".rstrip())
        if distilled.lr is not None:
            said.append(f"learned learning rate {distilled.lr:.4g}")
        if said:
            yield f"how its students are trained: {', '.join(said)}"

    def _by_bytes(self) -> tuple[bool, float]:
        """Return whether bytes round the values, and the share of values clipped by more than half a grey level."""
        farthest, outside = 0.0, 0
        for piece in self.pixels():
            levels = piece * 255
            inside = levels.clamp(0, 255)
            farthest = max(farthest, float((inside - inside.round()).abs().max()))
            outside += int(((levels - inside).abs() > _HALF).sum())
        return farthest > _EXACT, outside / (self.n * self.distilled.images[0].numel())


def needs_data(distilled: DistilledSet) -> bool:
    """Return whether the pixels of a set (indices, whitened pixels) need the data that it was distilled from."""
    if distilled.image_kind in ("indices", "schedule"):
        return True
    return distilled.images.is_floating_point() and distilled.space.get("kind") == "zca"
