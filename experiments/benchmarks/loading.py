"""Loading images from a folder: our loader against torchvision's `ImageFolder` with PyTorch's `DataLoader`.

Both sides decode the same JPEG files, resize the shorter side with the same filter, crop the centre and normalise, with
the same number of workers and batch size, and yield shuffled batches.  The other side uses Pillow, which `ImageFolder`
does by default.  The first pass, which is not timed, sums the squares of all pixels to show that both sides yield the
same values; the timed passes only consume the batches.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count, repeat
from pathlib import Path

import torch
from PIL import Image
from scale import Scale
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from worker import Gate

from dd.data import DataSettings, open_data
from dd.rng import generator
from dd.runs.allocator import keep_large_buffers
from dd.runs.cost import cores

STORED = 256  # height and width of the files in pixels
BATCH = 64


def write(gate: Gate, scale: Scale, folder: str) -> None:
    """Write the first images of the embedded data set, upsampled, as one JPEG file each."""
    data = open_data("fashion-mini", DataSettings(holdout=0), "cpu")
    for part, split, number in (("train", data.train, scale.files), ("test", data.test, 20)):
        pixels, labels = split.raw(torch.arange(number)), split.labels[:number]
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            path = Path(folder, part, str(label), f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(image[0].numpy()).resize((STORED, STORED), Image.Resampling.BICUBIC)
            large.convert("RGB").save(path, quality=90)
    gate.ready()


def ours(gate: Gate, scale: Scale, folder: str, size: int) -> None:
    """Our streamed split."""
    settings = DataSettings(holdout=0, size=size, stream=True, workers=workers())
    data = open_data(f"folder:{folder}", settings, "cpu")
    gate.ready()
    passes = (data.train.batches(BATCH, generator(0, "pass", epoch)) for epoch in count())
    _take(gate, passes, len(data.train))


def torchvisions(gate: Gate, scale: Scale, folder: str, size: int, kept: bool = False) -> None:
    """`ImageFolder` and `DataLoader`, with persistent workers; `kept`: with our allocator setting, as its workers."""
    if kept:
        keep_large_buffers()
    space = open_data(f"folder:{folder}", DataSettings(holdout=0, size=size, stream=True), "cpu").preprocess.spec()
    transform = transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(space["mean"], space["std"]),
        ]
    )
    images_of = ImageFolder(str(Path(folder, "train")), transform)
    batches = DataLoader(images_of, BATCH, shuffle=True, num_workers=workers(), persistent_workers=True)
    gate.ready()
    _take(gate, repeat(batches), len(images_of))


def workers() -> int:
    """Number of workers of both sides: one per core."""
    return cores()


def _take(gate: Gate, passes: Iterable[Iterable[Sequence[Tensor]]], images: int) -> None:
    """Consume one pass after another."""
    for number, batches in enumerate(passes):
        if number == 0:
            gate.pause(total=sum(float(pixels.square().sum()) for pixels, _ in batches))
        else:
            deque(batches, maxlen=0)
            gate.pause(images=images)
