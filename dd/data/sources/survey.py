"""Summarise the headers of a data set: choose one size for all images, and find what a user has to decide first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dd.data.settings import Depth16, Resize
from dd.data.sources.pixels import Header, Target, shorter_side
from dd.errors import UsageError
from dd.networks.spec import USUAL_SIDE

_SHOWN = 5  # number of broken files named in an error
_ALIKE = 1.5  # shorter sides within this factor of the chosen one are resized without a question
_SIDES = (224, 128, 64, 32)  # usual image sizes in the papers


@dataclass(frozen=True)
class Broken:
    """An unusable image and the reason; `deep` if it is intact but needs `data.depth16`."""

    file: str
    reason: str
    deep: bool = False


@dataclass(frozen=True)
class Survey:
    """Summary of the image headers of a data set, JSON-serialisable.

    Attributes:
        images: number of images.
        grey: whether all of them are grey.
        side: shorter side of the most common size (on a tie, the smallest), in pixels.
        sizes: smallest and largest (width, height).
        median: median of the shorter sides.
        one: whether all have the same shorter side.
        usual: whether most have a shorter side near `side`.
        turned: how many need EXIF rotation.
        deep: how many have more than 8 bits per channel.
        jpeg: how many are JPEG files.
    """

    images: int
    grey: bool
    side: int
    sizes: Sequence[Sequence[int]]
    median: int
    one: bool
    usual: bool
    turned: int
    deep: int
    jpeg: int = 0


def survey(headers: Sequence[Header]) -> Survey:
    """Summarise headers; there must be at least one."""
    sizes = Counter((header.width, header.height) for header in headers)
    ((width, height), _), sides = min(sizes.items(), key=lambda item: (-item[1], item[0])), Counter[int]()
    for size, count in sizes.items():
        sides[min(size)] += count
    side = min(width, height)
    near = sum(count for other, count in sides.items() if side / _ALIKE <= other <= side * _ALIKE)
    return Survey(
        images=len(headers),
        grey=all(header.grey for header in headers),
        side=side,
        sizes=[min(sizes), max(sizes)],
        median=sorted(sides.elements())[len(headers) // 2],
        one=len(sides) == 1,
        usual=2 * near > len(headers),
        turned=sum(header.turned for header in headers),
        deep=sum(header.deep for header in headers),
        jpeg=jpegs(headers),
    )


def choose_target(
    headers: Sequence[Header],
    channels: int | None = None,
    side: int | None = None,
    resize: Resize = "fit",
    depth16: Depth16 | None = None,
) -> Target:
    """One target for all images; its side defaults to the shorter side of the most common size."""
    found = survey(headers)
    return Target(channels or (1 if found.grey else 3), side or found.side, resize, depth16)


def questions(found: Survey, name: str, side: int | None, depth16: Depth16 | None, *, exact: bool = False) -> list[str]:
    """The questions that a user must answer before the images can be used, one line each.

    Args:
        found: summary of the headers.
        name: of the data set.
        side: `data.size`.
        depth16: `data.depth16`.
        exact: whether any difference in size raises a question, because only some headers were read.
    """
    asked = []
    if found.deep and depth16 is None:
        asked.append(deep_words(f"{found.deep:,} of {found.images:,} images of {name} have"))
    if side is None and not (found.one if exact else found.usual):
        (width, height), (other, tall) = found.sizes
        asked.append(
            f"the images of {name} differ in size ({width} x {height} and {other} x {tall} pixels among them): say "
            f"what they are brought to, such as data.size={suggested(found.median)}"
        )
    elif side is None and found.side > USUAL_SIDE:
        asked.append(large_words(name, found.side))
    return asked


def require_clear(found: Survey, name: str, side: int | None, depth16: Depth16 | None, *, exact: bool = False) -> None:
    """Raise a `UsageError` with the `questions`, if there are any."""
    if asked := questions(found, name, side, depth16, exact=exact):
        raise UsageError("\n".join(asked))


def deep_words(subject: str) -> str:
    """The question how more than 8 bits per channel become 8."""
    return (
        f"{subject} more than 8 bits per channel, and pixels have 8 here: say how they are scaled, data.depth16=full "
        "(0 to 65,535), image (darkest to brightest of each image) or [LOW, HIGH], such as [0, 4095] for 12 bits"
    )


def large_words(name: str, side: int) -> str:
    """The question what size large images are resized to."""
    return (
        f"the images of {name} are large ({side:,} pixels, where a ConvNet has a usual depth up to {USUAL_SIDE}): say "
        f"what they are brought to, such as data.size={suggested(side)}, or data.size={side} to keep them"
    )


def suggested(side: int) -> int:
    """The largest usual size not above `side`; if there is none, the smallest usual size."""
    return next((usual for usual in _SIDES if usual <= side), _SIDES[-1])


def refuse(broken: Sequence[Broken], name: str) -> None:
    """Raise a `UsageError` that names the first few broken images, if there are any."""
    if deep := [b for b in broken if b.deep]:
        raise UsageError(deep_words(f"{deep[0].file} in {name} has"))
    if broken:
        shown = "; ".join(f"{b.file} ({b.reason})" for b in broken[:_SHOWN])
        rest = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        way_out = f"remove or replace them (`dd data check {name}` lists all)"
        raise UsageError(f"{len(broken)} broken images in {name}: {shown}{rest}; {way_out}")


def image_notes(headers: Sequence[Header], target: Target) -> list[str]:
    """Notes on what changes when all images are brought to `target`."""
    side, notes = target.side, []
    kept = target.resize != "shorter" or shorter_side(side) == side
    other = sum(not kept or (header.width, header.height) != (side, side) for header in headers)
    if other:
        done = "squashed" if target.resize == "squash" else "resized and centre-cropped"
        notes.append(f"{other:,} of {len(headers):,} images were {done} to {side} x {side} pixels")
    grey = sum(header.grey for header in headers)
    if target.channels == 3 and grey:
        notes.append(f"{grey:,} grey images were turned into colour")
    if target.channels == 1 and grey < len(headers):
        notes.append(f"{len(headers) - grey:,} colour images were turned into grey")
    if turned := sum(header.turned for header in headers):
        notes.append(f"{turned:,} images were turned upright, as their EXIF says")
    if frames := sum(header.frames for header in headers):
        notes.append(f"of {frames:,} images with several frames the first was taken")
    if target.depth16 is not None and (deep := sum(header.deep for header in headers)):
        notes.append(f"{deep:,} images were brought to 8 bits, data.depth16={_shown(target.depth16)}")
    return notes


def jpegs(headers: Sequence[Header]) -> int:
    """Number of JPEG files; many phones write MPO, which is a JPEG with further images appended."""
    return sum(header.format in ("JPEG", "MPO") for header in headers)


def _shown(depth16: Depth16) -> str:
    return depth16 if isinstance(depth16, str) else f"[{depth16[0]:g}, {depth16[1]:g}]"
