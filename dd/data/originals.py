"""Images at their original size, before resizing: crops are cut from the full picture.

Each thread decodes one image at a time and keeps only the crops, so memory does not grow with the size of the files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from dd.data.positions import pass_order
from dd.data.preprocess import Preprocess
from dd.data.settings import Depth16
from dd.data.sources.decoding import Cut, Decoding, ImageReader, ahead
from dd.data.sources.pixels import original
from dd.views import BoxDraw, draw_shares

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Originals:
    """The image files of one part of a data set.

    Attributes:
        reader: reads the files; positions are those of the part's images.
        labels: int64 (n,), on the device.
        preprocess: with its tensors on the device.
        channels: 1 or 3.
        depth16: how images of more than 8 bits are converted to 8.
    """

    reader: ImageReader
    labels: Tensor
    preprocess: Preprocess
    channels: int
    depth16: Depth16 | None = None

    def crops(self, index: Tensor, draw: BoxDraw, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut crops and resize each to a square (bilinear, antialiased).

        Args:
            index: int64 (k,), which images.
            draw: k·m boxes, image by image.
            side: of a crop, in pixels.

        Returns:
            The crops, uint8 (k, m, c, side, side), on the device; their boxes, int64 (k, m, 4), as (top, left, height,
            width) in pixels of the file; and the image sizes, int64 (k, 2), as (height, width); both on the CPU.

        Raises:
            UsageError: images are broken; the message names them.
        """
        index, m = index.cpu(), draw.count // max(len(index), 1)
        boxes, sizes = torch.empty(len(index), m, 4, dtype=torch.int64), torch.empty(len(index), 2, dtype=torch.int64)

        def cut(slot: int, item: bytes | Path) -> np.ndarray:
            image = original(item, self.channels, self.depth16)
            sizes[slot] = torch.tensor([image.height, image.width])
            boxes[slot] = draw.of(slot * m, (slot + 1) * m).boxes((image.height, image.width))
            return np.stack([_cropped(image, box, side) for box in boxes[slot].tolist()])

        pixels = Decoding(self.reader, index, (m, self.channels, side, side), cut).pixels()
        return pixels, boxes, sizes

    def squashed(self, index: Tensor, side: int) -> Tensor:
        """uint8 (k, c, side, side) on the device: whole images, aspect ratio ignored.  Raises as `crops` does."""

        def cut(_: int, item: bytes | Path) -> np.ndarray:
            image = original(item, self.channels, self.depth16)
            return _cropped(image, [0, 0, image.height, image.width], side)

        return Decoding(self.reader, index.cpu(), (self.channels, side, side), cut).pixels()

    def batches(self, size: int, generator: Generator, side: int, least: float) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over (crops in model space, labels), with torchvision's ImageNet augmentation.

        That is a random resized crop and a horizontal flip with probability 1/2.  All random numbers of a batch are
        drawn before it is decoded; the last batch may be shorter.

        Args:
            size: images per batch.
            generator: a CPU generator.
            side: of a crop, in pixels.
            least: smallest share of an image's area that a crop keeps.

        Raises:
            UsageError: images are broken; the message names them.
        """
        # on a CPU the threads also transform; see `StreamedSplit.batches`
        here = self.preprocess if self.labels.device.type == "cpu" else None
        order = pass_order(len(self.labels), generator)

        def begin(index: Tensor) -> Decoding:
            draw = draw_shares(len(index), (least, 1.0), generator)
            flips = (torch.rand(len(index), generator=generator) < 0.5).tolist()
            shape = (self.channels, side, side)
            return Decoding(self.reader, index, shape, self._mirrored(draw, flips, side), here)

        begins = (partial(begin, index) for index in (order.split(size) if len(order) else ()))
        for batch in ahead(begins, size, self.reader.workers):
            labels = self.labels.index_select(0, batch.index.to(self.labels.device, non_blocking=True))
            yield batch.pixels() if here else self.preprocess(batch.pixels()), labels

    def _mirrored(self, draw: BoxDraw, flips: list[bool], side: int) -> Cut:
        def cut(slot: int, item: bytes | Path) -> np.ndarray:
            image = original(item, self.channels, self.depth16)
            (box,) = draw.of(slot, slot + 1).boxes((image.height, image.width)).tolist()
            pixels = _cropped(image, box, side)
            return pixels[:, :, ::-1] if flips[slot] else pixels

        return cut


def _cropped(image: "Image", box: Sequence[int], side: int) -> np.ndarray:
    """uint8 (c, side, side) of a box (top, left, height, width); cropped first, so no outside pixel bleeds in."""
    from PIL.Image import Resampling

    top, left, height, width = box
    pixels = np.asarray(image.crop((left, top, left + width, top + height)).resize((side, side), Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
