"""Noise images, for measurements that do not depend on image content."""

import torch

from dd.data import RealData
from dd.data.preprocess import standard
from dd.data.real import DeviceSplit
from dd.rng import generator
from dd.views.dsa import Shape


def noise(classes: int, shape: Shape, images: int, strategy: str = "none") -> RealData:
    """A data set of noise: `images` training images per class of shape (channels, side, side).

    One further image per class is held out, and one is for testing.
    """
    channels, side, _ = shape
    rng = generator(0, "images")
    space = standard(torch.empty(0), ((0.5,) * channels, (0.25,) * channels))

    def split(count: int) -> DeviceSplit:
        labels = torch.arange(classes).repeat_interleave(count)
        pixels = torch.randint(0, 256, (len(labels), *shape), generator=rng, dtype=torch.uint8)
        return DeviceSplit(pixels, labels, space, classes)

    return RealData(
        name="noise",
        classes=tuple(map(str, range(classes))),
        channels=channels,
        size=side,
        train=split(images),
        holdout=split(1),
        test=split(1),
        preprocess=space,
        augment=strategy,
        fingerprint=f"noise {classes} {images}",
        where="memory",
        licence="none needed",
    )
