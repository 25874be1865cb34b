"""The images of a set as small PNGs in the page: each beside the one it began from and a real one of its class."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from dd.data import RealData
from dd.data.preprocess import Preprocess, Standard, from_state
from dd.engine.method import ranks_of
from dd.errors import RunError, UsageError, in_one_line
from dd.page.subject import ReportedSet
from dd.pipeline.exports import real_data
from dd.runs.pictures import SHOWN, rgb, stretched
from dd.sets import DistilledSet
from dd.sets.distilled import is_outside
from dd.sets.tiles import decode

CARDS = 120  # most images of a set that are shown
CLASSES = 40  # most classes that are shown
ROUNDS = 3  # most epochs of a schedule that are shown
TILES = 4  # most decoded images of a mosaic that are shown
SIDE = 96  # larger images are shown smaller, in pixels
BYTES = 6 << 20  # bytes of all pictures of a page


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        what: "start", "distilled", "stretched", "chosen" or "real".
        uri: a PNG, as a data URI.
        alt: what it shows, for those who do not see it.
    """

    what: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Card:
    """An image of a set with those it is compared with.

    Attributes:
        name: its class, or "".
        pictures: at least one.
        clipped: share of its pixel values outside the displayable range, in words; "" if there can be none.
    """

    name: str
    pictures: tuple[Picture, ...]
    clipped: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images of a set.

    Attributes:
        title: what they are, if there are several galleries.
        cards: the images, class by class.
        left_out: what is not shown; may be empty.
    """

    title: str
    cards: tuple[Card, ...]
    left_out: str = ""


@dataclass
class Room:
    """The bytes left for pictures, and the real images: where the user says they are, and those that were opened."""

    bytes: int = BYTES
    dataset: str = ""
    opened: dict[str, RealData | str] = field(default_factory=dict)

    def takes(self, cards: tuple[Picture, ...]) -> bool:
        """Take the bytes of pictures, if they are left."""
        size = sum(len(one.uri) for one in cards)
        if size > self.bytes:
            return False
        self.bytes -= size
        return True


def galleries(subject: ReportedSet, room: Room) -> tuple[list[Gallery], list[str]]:
    """Return the images of a subject, and what is left out and why.

    Args:
        subject: what the page is about; nothing is shown of a report alone.
        room: what is left for pictures; reduced by what is returned.
    """
    distilled = subject.distilled
    if distilled is None:
        return [], []
    found = _data(distilled, room)
    remarks = [] if isinstance(found, RealData) else [f"real images are left out: {found}"]
    data = found if isinstance(found, RealData) else None
    if distilled.image_kind in ("indices", "schedule"):
        return (_chosen(distilled, data, room) if data else []), remarks
    preprocess = _preprocess(distilled, data)
    if preprocess is None:
        remarks.append("only stretched images are shown: without the data, the true range is unknown")
    if max(distilled.images.shape[2:]) > SIDE:
        remarks.append(f"images of {distilled.images.shape[-1]} pixels a side are shown with {SIDE}")
    return [_made(distilled, subject.start, data, preprocess, room)], remarks


def _data(distilled: DistilledSet, room: Room) -> RealData | str:
    """Return the set's real images, or why they cannot be shown."""
    key = f"{distilled.source} {distilled.provenance.get('data')} {distilled.space}"
    if key not in room.opened:
        try:
            room.opened[key] = real_data(distilled, room.dataset, own=False, download=False)
        except (UsageError, RunError, OSError) as error:
            room.opened[key] = in_one_line(error)
    found = room.opened[key]
    if isinstance(found, str):
        return found
    try:
        distilled.require_match(found)
    except UsageError as error:
        return in_one_line(error)
    return found


def _preprocess(distilled: DistilledSet, data: RealData | None) -> Preprocess | None:
    if data is not None:
        return data.preprocess
    if distilled.space["kind"] != Standard.kind or len(distilled.space["mean"]) != distilled.images.shape[1]:
        return None
    return from_state(distilled.space)


def _made(
    distilled: DistilledSet,
    start: DistilledSet | None,
    data: RealData | None,
    preprocess: Preprocess | None,
    room: Room,
) -> Gallery:
    """Return the images that a set holds."""
    tiles = min(distilled.decode_factor**2, TILES)
    own = _classes(distilled, start)
    index = _shown(own, len(distilled.classes), tiles)
    begun = None if start is None or torch.equal(start.images, distilled.images) else start
    now = _pixels(distilled, preprocess, index, tiles)
    before = None if begun is None else _pixels(begun, preprocess, index, tiles)
    wide = stretched(now) if distilled.images.is_floating_point() else None
    labels = own[index].repeat_interleave(tiles)
    real = None if data is None or not _named(distilled) else _real(data, labels)

    def cards() -> Iterator[tuple[int, Card]]:
        for at in ranks_of(labels).argsort(stable=True).tolist():
            label = int(labels[at])
            name = distilled.classes[label] if _named(distilled) else ""
            rows = [("start", before, "at iteration 0"), ("distilled", now if preprocess else None, "in true range"),
                    ("stretched", wide, "with stretched contrast")]  # fmt: skip
            pictures = [_picture(what, images[at], name, words) for what, images, words in rows if images is not None]
            if real is not None and at in real:
                pictures.append(_picture("real", real[at], name, "of the real data"))
            is_float = preprocess is not None and wide is not None
            clipped = f"{100 * is_outside(now[at]).float().mean():.1f} % clipped" if is_float else ""
            yield at, Card(name, tuple(pictures), clipped)

    kept = _kept(cards(), room)
    held = distilled.n * distilled.decode_factor**2
    decoded = f"Each stored image holds {distilled.decode_factor**2}; they are shown decoded. "
    return Gallery(
        "", kept, (decoded if distilled.decode_factor > 1 else "") + _left_out(len(kept), held, distilled.classes)
    )


def _chosen(distilled: DistilledSet, data: RealData, room: Room) -> list[Gallery]:
    """Return the real images that a set of indices, or the first epochs of a schedule, name."""
    is_schedule = distilled.image_kind == "schedule"
    rounds = distilled.images if is_schedule else distilled.images[None]
    every = _classes(distilled, None)
    classes = every if is_schedule else every[None]
    found = []
    for number, (indices, own) in enumerate(zip(rounds[:ROUNDS], classes[:ROUNDS], strict=True)):
        at = _shown(own, len(distilled.classes), len(rounds[:ROUNDS]))
        images = data.train.raw(indices[at]).float() / 255
        labels = own[at]
        real = None if is_schedule else _real(data, labels, set(indices.tolist()))
        found.append(_gallery_of_chosen(distilled, images, labels, real, room, f"Round {number + 1} of {len(rounds)}"))
    return found if is_schedule else [Gallery("", found[0].cards, found[0].left_out)]


def _gallery_of_chosen(
    distilled: DistilledSet, images: Tensor, labels: Tensor, real: dict[int, Tensor] | None, room: Room, title: str
) -> Gallery:
    def cards() -> Iterator[tuple[int, Card]]:
        for at in ranks_of(labels).argsort(stable=True).tolist():
            name = distilled.classes[int(labels[at])] if _named(distilled) else ""
            pictures = [_picture("chosen", images[at], name, "of the real data, chosen")]
            if real is not None and at in real:
                pictures.append(_picture("real", real[at], name, "of the real data, not chosen"))
            yield at, Card(name, tuple(pictures))

    kept = _kept(cards(), room)
    return Gallery(title, kept, _left_out(len(kept), distilled.n, distilled.classes))


def _kept(cards: Iterator[tuple[int, Card]], room: Room) -> tuple[Card, ...]:
    """Return the cards for which there is room, in the order of their numbers."""
    found: list[tuple[int, Card]] = []
    for at, card in cards:
        if not room.takes(card.pictures):
            break
        found.append((at, card))
    return tuple(card for _, card in sorted(found, key=lambda one: one[0]))


def _left_out(shown: int, held: int, classes: tuple[str, ...]) -> str:
    if shown >= held:
        return ""
    many = f", of the first {CLASSES} of {len(classes):,} classes" if len(classes) > CLASSES else ""
    return f"{shown:,} of {held:,} images are shown{many}; {held - shown:,} are left out."


def _named(distilled: DistilledSet) -> bool:
    """Return whether labels name classes."""
    return distilled.label_kind != "representations"


def _classes(distilled: DistilledSet, start: DistilledSet | None) -> Tensor:
    """Return the class of each image, int64 lead; of learned labels the initial one, as a label may have moved on."""
    if not _named(distilled):
        return torch.zeros(distilled.n, dtype=torch.int64)
    learned = distilled.label_kind in ("probabilities", "logits")
    of_start = start is not None and _named(start) and start.labels.shape[:1] == distilled.labels.shape[:1]
    return start.own_classes() if learned and of_start and start is not None else distilled.own_classes()


def _shown(own: Tensor, classes: int, each: int) -> Tensor:
    """Return the positions, class by class, of the images that there are cards for; each takes `each` of them."""
    most = max(1, min(SHOWN, CARDS // (min(classes, CLASSES) * each)))
    most = max(most, CARDS // each) if classes == 1 or not int(own.max()) else most
    at = ((own < CLASSES) & (ranks_of(own) < most)).nonzero().flatten()
    return at[own[at].argsort(stable=True)]


def _pixels(distilled: DistilledSet, preprocess: Preprocess | None, index: Tensor, tiles: int) -> Tensor:
    """Return images as pixels, 0 black and 1 white, not clipped; the first tiles of each mosaic, decoded."""
    if preprocess is None:
        images = distilled.images[index].float()  # whitened
    elif distilled.images.is_floating_point():
        images = preprocess.invert(distilled.pixels(preprocess, index))
    else:
        images = distilled.images[index].float() / 255
    if distilled.decode_factor > 1:
        every = decode(images, distilled.decode_factor)
        images = every.view(-1, len(index), *every.shape[1:])[:tiles].transpose(0, 1).flatten(0, 1)
    return images.detach().cpu()


def _real(data: RealData, labels: Tensor, spare: set[int] | None = None) -> dict[int, Tensor]:
    """Return a real image of the class of each card, by its position; other ones than `spare`, if there are any."""
    found = {}
    for label in labels.unique().tolist():
        at = (labels == label).nonzero().flatten().tolist()
        every = data.train.of_class(label)[: len(at) + len(spare or ())].tolist()
        index = torch.tensor([one for one in every if one not in (spare or ())][: len(at)], dtype=torch.int64)
        if len(index):
            found |= dict(zip(at, data.train.raw(index).float().cpu() / 255, strict=False))
    return found


def _picture(what: str, image: Tensor, name: str, words: str) -> Picture:
    return Picture(what, data_uri(image), f"{name or 'image'}, {words}")


def data_uri(image: Tensor) -> str:
    """Return an image (c, h, w), 0 black and 1 white, as a PNG in a data URI; larger ones reduced to `SIDE` pixels."""
    from PIL import Image

    if max(image.shape[1:]) > SIDE:
        scale = SIDE / max(image.shape[1:])
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = functional.interpolate(image[None], size=size, mode="area")[0]
    pixels = rgb(image)
    file = io.BytesIO()
    Image.fromarray(pixels if image.shape[0] == 3 else pixels[..., 0]).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
