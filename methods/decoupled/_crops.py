"""Patches of real images that teachers know best, or least, stitched to images: RDED (Sun et al., CVPR 2024).

For every class: of some random real images m random crops each, made as small as a tile and scored by the teachers'
cross entropy at their class, in the middle of a black frame of zeros; the best crop of every image; of these the best
n f^2; f^2 to an image, the k-th of n taking tiles k, n + k, 2n + k, ...
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dd.data import RealData
from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import UsageError
from dd.runs.store import Payload, Wanted
from dd.sets.tiles import mosaic
from dd.training.teachers import Teacher, Teachers
from dd.views import BoxDraw, draw_shares, resized_crop

from ._pixels import to_bytes

KIND = "patches"
BLOCK = 50  # classes in one artefact
VERSION = 1
_CHUNK = 256  # crops in a forward pass

Order = Literal["low", "medium", "high"]
Judge = Callable[[Tensor, Tensor, int], Tensor]
"""(images (k, c, h, w), boxes (k m, 4), class) -> (k, m) bool, which crops may be chosen."""


@dataclass(frozen=True)
class CropSettings:
    """Which patches are chosen.  Defaults: RDED's for small images (official code)."""

    factor: Annotated[int, Field(ge=1)] = 1
    """Tiles per side of an image; 2 at 224 pixels."""
    crops: Annotated[int, Field(ge=1)] = 5
    """Random crops of each real image."""
    candidates: Annotated[int, Field(ge=1)] = 300
    """Real images of a class that are looked at; a class with fewer gives all it has."""
    least: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Least share of an image's area that a crop keeps; crops are square."""
    order: Order = "low"
    """Which crops are preferred: "low" takes the lowest cross entropies, as RDED does; "high" the highest; "medium"
    those in the middle.
    """
    originals: bool = False
    """Crops are cut from the files, where these are images that were brought to size, as RDED cuts them; false: from
    the squares.
    """


@dataclass(frozen=True, eq=False)
class Stitched:
    """Stitched images, class by class.

    Attributes:
        blocks: uint8 (images, c, h, w) of so many classes each, memory-mapped.
        counts: images of each class.
    """

    blocks: tuple[Tensor, ...]
    counts: tuple[int, ...]

    def take(self, targets: Tensor, ranks: Tensor) -> Tensor:
        """uint8 (n, c, h, w): of each of (n,) classes the image of that rank."""
        first = torch.tensor([0, *self.counts]).cumsum(0)
        sizes = torch.tensor([len(block) for block in self.blocks])
        ends = sizes.cumsum(0)
        places = first[targets.cpu()] + ranks
        blocks = torch.bucketize(places, ends, right=True)
        inside = places - (ends - sizes)[blocks]
        return torch.stack([self.blocks[b][i] for b, i in zip(blocks.tolist(), inside.tolist(), strict=True)])


@dataclass(frozen=True, eq=False)
class Patches(Need[Stitched]):
    """As many stitched images of each class as are asked for, an artefact for every 50 classes.

    Attributes:
        task: the whole set.
        settings: which patches.
        staff: the teachers that know them; cross entropies are means over them.
        judge: given the teachers, says which crops may be chosen; None for all.
    """

    task: Task
    settings: CropSettings
    staff: Teachers
    judge: Callable[[Sequence[Teacher]], Judge] | None = None
    name = "patches"

    def artefacts(self) -> list[Wanted]:
        """One per block of classes."""
        task, wanted = self.task, []
        for block in _blocks(task.classes):
            spec = {
                "version": VERSION,
                "data": task.data.fingerprint,
                "teachers": self.staff.keys(),
                "settings": {"kind": type(self.settings).__name__, **asdict(self.settings)},
                "seed": task.seed,
                "classes": [block.start, block.stop],
                "counts": _counts(task)[block.start : block.stop],
                "device": task.device.type,
            }
            words = f"patches of classes {block.start} to {block.stop - 1} of {task.data.name}"
            wanted.append(Wanted(KIND, spec, words))
        return wanted

    def fetch(self, got: Got) -> Stitched:
        """The stitched images.

        Raises:
            UsageError: a class has too few images that may be chosen; `require_enough` says sooner where it has too
                few.
        """
        task, counts, blocks = self.task, _counts(self.task), []
        teachers = got[self.staff]
        members = [teacher.network for teacher in teachers]
        judge = None if self.judge is None else self.judge(teachers)

        def make(block: range) -> Payload:
            made = [stitched_class(task, self.settings, members, c, counts[c], judge) for c in block if counts[c]]
            return {"images": torch.cat(made)}, {}

        for block, (kind, spec, words) in zip(_blocks(task.classes), self.artefacts(), strict=True):
            kept = task.store.tensors(kind, spec, partial(make, block), words)
            assert kept.tensors is not None
            blocks.append(kept.tensors["images"])
        return Stitched(tuple(blocks), tuple(counts))


def require_enough(task: Task, settings: CropSettings) -> None:
    """Refuse classes with too few images, before hours of training teachers.

    Raises:
        UsageError: a class has fewer candidates than its images have tiles.
    """
    for c, count in enumerate(_counts(task)):
        there = len(task.data.train.of_class(c))
        tiles, candidates = count * settings.factor**2, min(there, settings.candidates)
        if candidates < tiles:
            way_out = f"raise crops.candidates={settings.candidates}" if there >= tiles else "lower ipc or crops.factor"
            raise UsageError(
                f"class {task.data.classes[c]!r}: {count} images of {settings.factor}x{settings.factor} tiles need "
                f"{tiles} real images, but there are {candidates} candidates (of {there}): {way_out}"
            )


@torch.no_grad()
def stitched_class(
    task: Task, settings: CropSettings, members: Sequence[nn.Module], c: int, count: int, judge: Judge | None = None
) -> Tensor:
    """uint8 (count, ch, h, w) stitched images of one class, on the CPU."""
    data, f, m = task.data, settings.factor, settings.crops
    rng, pool = task.common("patches", c), data.train.of_class(c)
    index = pool[torch.randperm(len(pool), generator=rng)[: settings.candidates]]
    draw, side = draw_shares(len(index) * m, (settings.least, 1.0), rng, stretch=1), data.size // f
    make = _of_files if settings.originals and data.train.originals else _of_squares
    found = make(data, index, draw, side, judge is not None)
    scores = scored(members, found.some, len(index), m, c, data.size)
    allowed = None if judge is None else judge(found.images, found.boxes, c)
    chosen, crop = select(scores, count * f**2, settings.order, allowed)
    tiles = found.some(chosen.cpu() * m + crop.cpu())
    tiles = tiles.view(f**2, count, *tiles.shape[1:]).transpose(0, 1).flatten(0, 1)
    return to_bytes(data.preprocess, mosaic(tiles, f, data.size)).cpu()


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Crops of real images.

    Attributes:
        some: int64 (n,) numbers of crops, counted image by image, -> (n, c, side, side) in model space.
        images: (k, c, h, w) in model space, what they were cut from; None where nobody looks at it.
        boxes: (k m, 4), where in `images`, see `draw_boxes`.
    """

    some: Callable[[Tensor], Tensor]
    images: Any
    boxes: Tensor


def _of_squares(data: RealData, index: Tensor, draw: BoxDraw, side: int, _: bool) -> _Candidates:
    """Crops of the images as they were brought to size."""
    images, boxes = data.train.images(index), draw.boxes((data.size, data.size))
    return _Candidates(partial(_cut, images, boxes, side), images, boxes)


def _cut(images: Tensor, boxes: Tensor, side: int, numbers: Tensor) -> Tensor:
    """(n, c, side, side): crops by their numbers, of images (k, c, h, w) with boxes (k m, 4)."""
    owners = numbers // (len(boxes) // len(images))
    return resized_crop(images[owners.to(images.device)], boxes[numbers], side)


def _of_files(data: RealData, index: Tensor, draw: BoxDraw, side: int, looked_at: bool) -> _Candidates:
    """Crops of the files, of which no more than the crops is kept; boxes are those in the squashed pictures."""
    originals = data.train.originals
    assert originals is not None
    crops, boxes, sizes = originals.crops(index, draw, side)
    crops = crops.flatten(0, 1)
    images = data.preprocess(originals.squashed(index, data.size)) if looked_at else None
    scale = (data.size / sizes.double()).repeat(1, 2)[:, None]
    squashed = (boxes * scale).round().long()
    squashed[..., 2:] = squashed[..., 2:].clamp_min(1).minimum(data.size - squashed[..., :2])
    return _Candidates(lambda numbers: data.preprocess(crops[numbers.to(crops.device)]), images, squashed.flatten(0, 1))


def score(members: Sequence[nn.Module], images: Tensor, boxes: Tensor, c: int, side: int) -> Tensor:
    """(k, m) cross entropy at class `c` of m crops of each of k images, a mean over members.

    Args:
        members: networks in evaluation mode.
        images: (k, ch, h, w) in model space.
        boxes: (k m, 4), see `draw_boxes`.
        c: the class.
        side: of a crop in pixels; zeros around it fill the image.
    """
    some = partial(_cut, images, boxes, side)
    return scored(members, some, len(images), len(boxes) // len(images), c, images.shape[2])


def scored(
    members: Sequence[nn.Module], some: Callable[[Tensor], Tensor], images: int, m: int, c: int, size: int
) -> Tensor:
    """(images, m) cross entropy at class `c` of crops, a mean over members.

    Args:
        members: networks in evaluation mode.
        some: gives crops by their numbers, counted image by image.
        images: how many images.
        m: crops of each.
        c: the class.
        size: of an image in pixels, which zeros around a crop fill.
    """
    found = []
    for numbers in torch.arange(images * m).split(_CHUNK):
        crops = framed(some(numbers), size)
        target = torch.full((len(numbers),), c, device=crops.device)
        each = [F.cross_entropy(member(crops).float(), target, reduction="none") for member in members]
        found.append(torch.stack(each).mean(0))
    return torch.cat(found).view(images, m)


def framed(crops: Tensor, side: int) -> Tensor:
    """(n, c, side, side): crops in the middle of zeros."""
    before = (side - crops.shape[2]) // 2
    after = side - crops.shape[2] - before
    return F.pad(crops, (before, after, before, after))


def select(scores: Tensor, count: int, order: Order, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The images (count,) and which crop of each (count,), one per image, the most wanted first.

    Args:
        scores: (k, m).
        count: how many of the k images.
        order: "low" prefers low scores in an image and among images, "high" high ones; "medium" takes the lowest of
            each image, and of these the middle, ascending.
        allowed: (k, m) bool, the crops that may be taken.

    Raises:
        UsageError: fewer than `count` images have a crop that may be taken.
    """
    wanted = -scores if order == "high" else scores
    if allowed is not None:
        wanted = wanted.masked_fill(~allowed, torch.inf)
    best, crop = wanted.min(1)
    ranked = best.argsort(stable=True)
    ranked = ranked[best[ranked].isfinite()]
    if len(ranked) < count:
        raise UsageError(
            f"{len(ranked)} of {len(scores)} real images have an eligible crop, but {count} are needed: raise "
            "crops.candidates, or lower crops.share"
        )
    first = (len(ranked) - count) // 2 if order == "medium" else 0
    chosen = ranked[first : first + count]
    return chosen, crop[chosen]


def _blocks(classes: int) -> list[range]:
    return [range(first, min(first + BLOCK, classes)) for first in range(0, classes, BLOCK)]


def _counts(task: Task) -> list[int]:
    return torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
