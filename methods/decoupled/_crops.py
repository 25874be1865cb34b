"""Select and stitch patches of real images by the teachers' confidence: RDED (Sun et al., CVPR 2024).

For every class:

1. Take `candidates` real images, at random or from a given pool, and `crops` random square crops of each.
2. Resize each crop to a tile, pad it with zeros to the full size, and score it by the teachers' cross-entropy.
3. Keep the best crop of every image, and of these the best n f^2.
4. Stitch f^2 tiles to an image: the k-th of n images takes the tiles k, n + k, 2n + k, ...
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol

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
BLOCK = 50  # classes per artefact
VERSION = 1
_CHUNK = 256  # crops per forward pass

Order = Literal["low", "medium", "high"]
Judge = Callable[[Tensor, Tensor, int], Tensor]
"""(images (k, c, h, w), boxes (k m, 4), class) -> bool (k, m), which crops are eligible."""


@dataclass(frozen=True)
class CropSettings:
    """How patches are selected.  Defaults: RDED's for small images (official code)."""

    factor: Annotated[int, Field(ge=1)] = 1
    """Tiles per side of an image; RDED uses 2 at 224 pixels."""
    crops: Annotated[int, Field(ge=1)] = 5
    """Random crops per real image."""
    candidates: Annotated[int, Field(ge=1)] = 300
    """Candidate real images per class; all images of a smaller class."""
    least: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of an image's area that a crop keeps; crops are square."""
    order: Order = "low"
    """Which crops are preferred: those with "low" cross-entropy (RDED), "high" cross-entropy, or "medium", the middle
    of the ranking.
    """
    originals: bool = False
    """Cut crops from the original files, as RDED does, if images were resized; false: from the resized squares."""


@dataclass(frozen=True, eq=False)
class Stitched:
    """Stitched images, ordered by class.

    Attributes:
        blocks: one uint8 (images, c, h, w) per block of classes, memory-mapped.
        counts: images per class.
    """

    blocks: tuple[Tensor, ...]
    counts: tuple[int, ...]

    def take(self, targets: Tensor, ranks: Tensor) -> Tensor:
        """The images, uint8 (n, c, h, w), with the given ranks within their classes `targets` (n,)."""
        first = torch.tensor([0, *self.counts]).cumsum(0)
        sizes = torch.tensor([len(block) for block in self.blocks])
        ends = sizes.cumsum(0)
        places = first[targets.cpu()] + ranks
        blocks = torch.bucketize(places, ends, right=True)
        inside = places - (ends - sizes)[blocks]
        return torch.stack([self.blocks[b][i] for b, i in zip(blocks.tolist(), inside.tolist(), strict=True)])


class Candidates(Protocol):
    """The real images that crops are cut from, if they are not random ones."""

    def key(self) -> dict[str, Any]:
        """JSON-serialisable facts that determine the images; part of the key of the patches."""
        ...

    def candidates(self, got: Got, count: int) -> Sequence[Tensor]:
        """Per class, int64 indices of at most `count` training images."""
        ...


@dataclass(frozen=True, eq=False)
class Patches(Need[Stitched]):
    """The need for stitched images of every class, with one artefact per 50 classes.

    Attributes:
        task: the whole run, for its number of images per class.
        settings: how patches are selected.
        staff: the teachers; cross-entropies are averaged over them.
        judge: makes, from the teachers, the function that says which crops are eligible; None for all crops.
        pool: the candidate images; None for random ones.
    """

    task: Task
    settings: CropSettings
    staff: Teachers
    judge: Callable[[Sequence[Teacher]], Judge] | None = None
    pool: Candidates | None = None
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
            if self.pool is not None:
                spec["pool"] = self.pool.key()
            words = f"patches of classes {block.start} to {block.stop - 1} of {task.data.name}"
            wanted.append(Wanted(KIND, spec, words))
        return wanted

    def fetch(self, got: Got) -> Stitched:
        """Return the stitched images, made if they are not in the store.

        Raises:
            UsageError: a class has too few images with an eligible crop; `require_enough` checks the number of images
                earlier.
        """
        task, counts, blocks, wanted = self.task, _counts(self.task), _blocks(self.task.classes), self.artefacts()
        teachers = got[self.staff]
        members = [teacher.network for teacher in teachers]
        judge = None if self.judge is None else self.judge(teachers)
        given = None if self.pool is None else self.pool.candidates(got, self.settings.candidates)

        def make(block: range) -> Payload:
            made = [
                stitched_class(task, self.settings, members, c, counts[c], judge, None if given is None else given[c])
                for c in block
                if counts[c]
            ]
            return {"images": torch.cat(made)}, {}

        def fetched(at: int) -> Tensor:
            kind, spec, words = wanted[at]
            kept = task.store.tensors(kind, spec, partial(make, blocks[at]), words)
            assert kept.tensors is not None
            return kept.tensors["images"]

        return Stitched(tuple(task.store.each(wanted, fetched)), tuple(counts))


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
    task: Task,
    settings: CropSettings,
    members: Sequence[nn.Module],
    c: int,
    count: int,
    judge: Judge | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Select and stitch `count` images of one class: uint8 (count, ch, h, w), on the CPU.

    `index` are the candidate images, by default random ones.
    """
    data, f, m = task.data, settings.factor, settings.crops
    rng, own = task.common("patches", c), data.train.of_class(c)
    if index is None:
        index = own[torch.randperm(len(own), generator=rng)[: settings.candidates]]
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
    """Candidate crops of real images.

    Attributes:
        some: crop numbers, int64 (n,), counted image by image, -> crops (n, c, side, side) in model space.
        images: their source images, (k, c, h, w) in model space; None if no judge needs them.
        boxes: (k m, 4), boxes in `images`, see `draw_boxes`.
    """

    some: Callable[[Tensor], Tensor]
    images: Any
    boxes: Tensor


def _of_squares(data: RealData, index: Tensor, draw: BoxDraw, side: int, _: bool) -> _Candidates:
    """Crops of the resized images."""
    images, boxes = data.train.images(index), draw.boxes((data.size, data.size))
    return _Candidates(partial(_cut, images, boxes, side), images, boxes)


def _cut(images: Tensor, boxes: Tensor, side: int, numbers: Tensor) -> Tensor:
    """Crops (n, c, side, side) by number, of images (k, c, h, w) with boxes (k m, 4)."""
    owners = numbers // (len(boxes) // len(images))
    return resized_crop(images[owners.to(images.device)], boxes[numbers], side)


def _of_files(data: RealData, index: Tensor, draw: BoxDraw, side: int, looked_at: bool) -> _Candidates:
    """Crops of the original files; keeps only the crops in memory.  Boxes are in coordinates of the squashed images."""
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
    """Cross-entropy (k, m) for class `c` of m crops of each of k images, averaged over members.

    Args:
        members: networks in eval mode.
        images: (k, ch, h, w) in model space.
        boxes: (k m, 4), see `draw_boxes`.
        c: the class.
        side: of a crop in pixels; it is padded with zeros to the size of the image.
    """
    some = partial(_cut, images, boxes, side)
    return scored(members, some, len(images), len(boxes) // len(images), c, images.shape[2])


def scored(
    members: Sequence[nn.Module], some: Callable[[Tensor], Tensor], images: int, m: int, c: int, size: int
) -> Tensor:
    """Cross-entropy (images, m) for class `c` of crops, averaged over members.

    Args:
        members: networks in eval mode.
        some: returns crops by number, counted image by image.
        images: number of images.
        m: crops per image.
        c: the class.
        size: of an image in pixels, to which crops are padded with zeros.
    """
    found = []
    for numbers in torch.arange(images * m).split(_CHUNK):
        crops = framed(some(numbers), size)
        target = torch.full((len(numbers),), c, device=crops.device)
        each = [F.cross_entropy(member(crops).float(), target, reduction="none") for member in members]
        found.append(torch.stack(each).mean(0))
    return torch.cat(found).view(images, m)


def framed(crops: Tensor, side: int) -> Tensor:
    """Pad crops with zeros, centred, to (n, c, side, side)."""
    before = (side - crops.shape[2]) // 2
    after = side - crops.shape[2] - before
    return F.pad(crops, (before, after, before, after))


def select(scores: Tensor, count: int, order: Order, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Select the best crop of each image, then the best images.

    Args:
        scores: (k, m).
        count: number of images to select.
        order: "low" prefers low scores, within and among images; "high" prefers high scores; "medium" takes the lowest
            score of each image, and of these the middle of the ranking, ascending.
        allowed: (k, m) bool, the eligible crops; None for all.

    Returns:
        The images (count,) and the crop of each (count,), best first.

    Raises:
        UsageError: fewer than `count` images have an eligible crop.
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
