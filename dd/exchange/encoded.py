"""Encoded images in a folder, a zip file or a tar file, decoded to pixels without unpacking anything to disk.

Archives are read in memory, member by member, so paths outside the archive, links and devices cannot do harm. They are
still refused: no program that exports sets writes them.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

import torch
from torch import Tensor

from dd.data import kind_of
from dd.data.sources.content import EncodedSplit, ImageFiles, Items
from dd.data.sources.decoding import decode_split, headers
from dd.data.sources.pixels import Header, Target
from dd.data.sources.survey import Broken
from dd.data.sources.walk import READABLE, Folder, join, some, walk
from dd.errors import UsageError, in_one_line, printable
from dd.exchange import zips
from dd.exchange.draft import Asked
from dd.networks.spec import USUAL_SIDE
from dd.runs.cost import total_memory
from dd.sizes import readable_size

_LINK = 0o120000  # file type in the mode of a zip member
_BLOCK, _USTAR = 512, slice(257, 262)  # of a tar file's first header, and the position of its magic
_SHARE = 0.5  # maximum share of memory for images
_LARGEST = 4 << 30  # bytes of the images of a tar file, held in memory
_GREY = 24  # grey levels by which JPEG lets the channels of a grey image differ, at most
_DAMAGED = (
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
)


class ImageTree(Protocol):
    """A tree of folders of encoded images, on disk or in an archive."""

    @property
    def top(self) -> Folder:
        """Return the root folder."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the remarks on ignored files."""
        ...

    def items(self, paths: Sequence[str]) -> Items:
        """Return the images at paths relative to the root."""
        ...

    def text(self, path: str, most: int) -> str | None:
        """Return the content of a text file; None if it does not exist or has more than `most` bytes."""
        ...


@dataclass(frozen=True, eq=False)
class _OnDisk:
    root: Path

    @cached_property
    def _walked(self) -> tuple[Folder, tuple[str, ...]]:
        top, passed = walk(self.root)
        return top, passed.notes()

    @property
    def top(self) -> Folder:
        return self._walked[0]

    @property
    def notes(self) -> tuple[str, ...]:
        return self._walked[1]

    def items(self, paths: Sequence[str]) -> Items:
        return ImageFiles(self.root, paths)

    def text(self, path: str, most: int) -> str | None:
        file = self.root / path
        if not file.is_file() or file.stat().st_size > most:
            return None
        return file.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class _Members:
    """Images in an archive, as `Items`."""

    load_bytes: Callable[[str], bytes]
    paths: Sequence[str]
    run: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int) -> bytes:
        return self.load_bytes(self.paths[i])

    def name(self, i: int) -> str:
        return printable(self.paths[i], keep="")

    def take(self, index: Sequence[int]) -> "_Members":
        return _Members(self.load_bytes, [self.paths[i] for i in index])


@dataclass(frozen=True, eq=False)
class _Archive:
    """A zip or tar file."""

    path: Path
    sizes: dict[str, int]
    load: Callable[[str], bytes]

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def top(self) -> Folder:
        return self._top

    @cached_property
    def _top(self) -> Folder:
        return _folders(self.path.stem, self.sizes)

    def items(self, paths: Sequence[str]) -> Items:
        return _Members(self.load, paths)

    def text(self, path: str, most: int) -> str | None:
        if self.sizes.get(path, most + 1) > most:
            return None
        return self.load(path).decode("utf-8", errors="replace")


def image_tree(path: Path) -> ImageTree | None:
    """Open the images in a folder or an archive; None if the file is not an archive.

    Raises:
        UsageError: the archive is damaged or suspicious: paths outside of it, links, or more content than a file of its
            size can hold.
    """
    if path.is_dir():
        return _OnDisk(path)
    with path.open("rb") as file:
        begin = file.read(2)
    if begin == b"PK":
        return _zip(path)
    return _tar(path) if _is_tar(path) else None


def decoded(items: Items, named: str, asked: Asked) -> Tensor:
    """Decode images to bytes of pixels, uint8 (n, c, side, side).

    Images are resized to `asked.size`, if given. For a grey data set, colour images that show no colour become grey.

    Raises:
        UsageError: images are damaged, differ in size, or are too large for the networks; the message suggests `size=`.
    """
    found = headers(items, range(len(items)))
    if broken := [one for one in found if isinstance(one, Broken)]:
        listed = some([f"{printable(one.file, keep='')} ({in_one_line(printable(one.reason))})" for one in broken])
        raise UsageError(f"{named}: {len(broken):,} of {len(items):,} images cannot be read: {listed}")
    good = [one for one in found if isinstance(one, Header)]
    side, kind = _side(good, named, asked), kind_of(asked.dataset)
    channels = 1 if all(one.grey for one in good) else 3
    needed, there = len(items) * channels * side**2, total_memory(torch.device("cpu"))
    if needed > _SHARE * there:
        raise UsageError(
            f"{named}: its {len(items):,} images of {side} pixels take {readable_size(needed)}, and there are "
            f"{readable_size(there)} of memory; take fewer (ipc=N) or smaller ones (size=N)"
        )
    labels = torch.zeros(len(items), dtype=torch.int64)
    images, _, broken = decode_split(EncodedSplit(items, labels), found, Target(channels, side))
    if broken:
        raise UsageError(f"{named}: {len(broken):,} images cannot be read: {some([one.file for one in broken])}")
    if channels == 3 and kind is not None and kind.channels == 1 and shows_no_colour(images):
        return images[:, 1:2].contiguous()  # the channel that JPEG rounds least
    return images


def shows_no_colour(images: Tensor) -> bool:
    """Return whether the three channels of images (n, 3, h, w) are equal up to JPEG artefacts."""
    return all(bool((part.amax(1) - part.amin(1) <= _GREY).all()) for part in images.split(256))


def _side(found: Sequence[Header], named: str, asked: Asked) -> int:
    if deep := sum(one.deep for one in found):
        raise UsageError(f"{named}: {deep:,} images have more than 8 bits per channel; convert them to 8")
    if asked.size is not None:
        return asked.size
    sizes = {(one.width, one.height) for one in found}
    width, height = min(sizes)
    if len(sizes) > 1 or width != height:
        words = some([f"{w} x {h}" for w, h in sorted(sizes)])
        raise UsageError(f"{named}: its images are of {words} pixels; say what they are brought to: size=224")
    if width > USUAL_SIDE:
        raise UsageError(f"{named}: its images have {width} pixels; say size={width}, or what they are brought to")
    return width


def _zip(path: Path) -> ImageTree:
    sizes = zips.members(path, packed=True)
    file = zipfile.ZipFile(path)  # read in threads, member by member
    for one in file.infolist():
        _require_inside(path, one.filename)
        if one.external_attr >> 16 & 0o170000 == _LINK or one.flag_bits & 1:
            raise UsageError(f"{path} is refused: {printable(one.filename, keep='')} is a link, or encrypted")

    def load(name: str) -> bytes:
        with file.open(name) as member:
            return member.read(sizes[name])

    return _Archive(path, {name: size for name, size in sizes.items() if not name.endswith("/")}, load)


def _tar(path: Path) -> ImageTree:
    """Read all images in one pass: a compressed archive has no random access."""
    kept: dict[str, bytes] = {}
    most = min(_LARGEST, zips.most_of(path.stat().st_size))
    try:
        with _unpacked(path) as content, tarfile.open(fileobj=_Bounded(content, path, most), mode="r|") as file:
            for member in file:
                _require_inside(path, member.name)
                if member.isdir():
                    continue
                if not member.isreg():
                    raise UsageError(f"{path} is refused: {printable(member.name, keep='')} is a link or a device")
                opened = file.extractfile(member)
                assert opened is not None, "it is a file"
                kept[str(PurePosixPath(member.name))] = opened.read()
    except _DAMAGED as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error
    return _Archive(path, {name: len(data) for name, data in kept.items()}, kept.__getitem__)


def _is_tar(path: Path) -> bool:
    """Check the magic, compressed or not; `tarfile.is_tarfile` would read as much as the first header declares."""
    try:
        with _unpacked(path) as content:
            return content.read(_BLOCK)[_USTAR] == b"ustar"
    except _DAMAGED:
        return False


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        begin = file.read(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if begin.startswith(magic):
            return cast(IO[bytes], opened(path, "rb"))
    return path.open("rb")


class _Bounded(io.RawIOBase):
    """A stream that yields at most `most` bytes."""

    def __init__(self, content: IO[bytes], path: Path, most: int) -> None:
        super().__init__()
        self._content, self._path, self._most, self._left = content, path, most, most

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes."""
        if size < 0 or size > self._left:
            raise UsageError(f"{self._path} is refused: more than {readable_size(self._most)} would come out of it")
        found = self._content.read(size)
        self._left -= len(found)
        return found


def _require_inside(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0] or "\0" in name:
        raise UsageError(
            f"{path} is refused: its member {printable(name, keep='')[:100]!r} would climb out of a folder"
        )


def _folders(name: str, files: dict[str, int]) -> Folder:
    """Build the tree of files from their paths, without hidden ones, as `walk` returns it."""
    top = Folder(name, "")
    for path in sorted(files):
        *above, last = [part for part in path.split("/") if part not in ("", ".")]
        if last.startswith(".") or any(part.startswith((".", "__")) for part in above):
            continue
        folder = top
        for part in above:
            folder = folder.folders.setdefault(part, Folder(part, join(folder.path, part)))
        is_image = PurePosixPath(last).suffix.lower() in READABLE
        (folder.images if is_image else folder.others).append(last)
    for folder in top.below():
        folder.images.sort()
        folder.folders = dict(sorted(folder.folders.items()))
    return top
