"""The image files below a folder, found without opening one, and what was passed over on the way."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dd.errors import UsageError

# suffixes of files that hold images, in lower case: what Pillow decodes; of an animated one the first frame is taken
# fmt: off
READABLE = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
_SHOWN = 3  # names in a note
# what often lies beside images, and needs no note
# fmt: off
_COMPANIONS = {
    ".bib", ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log", ".m",
    ".mat", ".md", ".md5", ".pdf", ".py", ".rst", ".sh", ".sha256", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml",
    ".yaml", ".yml",
}
# fmt: on


@dataclass(eq=False)
class Folder:
    """A folder and what is in it, hidden things left out.

    Attributes:
        name: its own.
        path: below the root, "/" between names; "" for the root.
        images: names of its image files, ascending.
        others: names of its other files.
        folders: those in it, by name, ascending; without images too.
    """

    name: str
    path: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    @cached_property
    def filled(self) -> dict[str, "Folder"]:
        """The folders in it that hold images, at whatever depth."""
        return {name: folder for name, folder in self.folders.items() if folder.images or folder.filled}

    @property
    def empty(self) -> list["Folder"]:
        """The folders in it that hold none."""
        return [folder for name, folder in self.folders.items() if name not in self.filled]

    def below(self) -> Iterator["Folder"]:
        """This folder and all in it."""
        yield self
        for folder in self.folders.values():
            yield from folder.below()

    def files(self) -> list[str]:
        """Paths of all images in it, below the root, folder by folder in the order of their paths."""
        folders = sorted(self.below(), key=lambda folder: folder.path)
        return [join(folder.path, name) for folder in folders for name in folder.images]


@dataclass
class Passed:
    """What was not read."""

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    odd: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        notes = []
        if total := self.suffixes.total():
            kinds = self.suffixes.most_common()
            shown = ", ".join(f"{count:,} {name}" for name, count in kinds) if len(kinds) > 1 else kinds[0][0]
            notes.append(f"{total:,} {'file' if total == 1 else 'files'} not read: {shown}")
        if self.hidden:
            notes.append(f"hidden and not read: {self.hidden:,} of the names of images")
        if self.odd:
            notes.append(f"not regular files and not read: {some(sorted(self.odd))}")
        if self.back:
            notes.append(f"links to what is read anyway, not followed: {some(sorted(self.back))}")
        return tuple(notes)


def walk(root: Path, only: Sequence[str] | None = None) -> tuple[Folder, Passed]:
    """All folders below `root`, and what was passed over: hidden things, links back, other files.

    Every folder and file is taken once, by its real path: first those that no link leads to.

    Args:
        root: an absolute path.
        only: the folders directly in it that are looked into; None: all.

    Raises:
        UsageError: a folder cannot be read.
    """
    return _Walk(root, only).run()


def join(folder: str, name: str) -> str:
    """A path below the root."""
    return f"{folder}/{name}" if folder else name


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


class _Walk:
    def __init__(self, root: Path, only: Sequence[str] | None) -> None:
        self._root, self._only = root, None if only is None else set(only)
        self._top, self._passed = Folder(root.name, ""), Passed()
        # a link to a folder above leads back too
        self._seen = {_identity(folder) for folder in (root, *root.resolve().parents)}
        self._folder_links: list[tuple[Folder, str]] = []
        self._file_links: list[tuple[Folder, str]] = []

    def run(self) -> tuple[Folder, Passed]:
        self._look([self._top])
        while self._folder_links:
            # the shallowest first: a class that is a link before a link within a class
            link = min(self._folder_links, key=_depth)
            self._folder_links.remove(link)
            self._follow(*link)
        self._take_file_links()
        for folder in self._top.below():
            folder.images.sort()
            folder.folders = dict(sorted(folder.folders.items()))
        return self._top, self._passed

    def _look(self, waiting: list[Folder]) -> None:
        """Fill these folders and all below, as far as no link is in the way."""
        while waiting:
            folder = waiting.pop()
            place = os.path.join(self._root, folder.path)
            try:
                with os.scandir(place) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                raise UsageError(
                    f"the folder {place} cannot be read ({error.strerror}); make it readable, or take it away"
                ) from error
            for entry in found:
                if inner := self._enter(folder, entry):
                    waiting.append(inner)

    def _enter(self, folder: Folder, entry: "os.DirEntry[str]") -> Folder | None:
        """Note one name in a folder; returns a folder that is to be looked into."""
        name, is_link = entry.name, entry.is_symlink()
        is_folder = entry.is_dir()
        if _hidden(name, is_folder):
            self._passed.hidden += not is_folder and _suffix(name) in READABLE
        elif is_folder:
            if folder is not self._top or self._only is None or name in self._only:
                if is_link:
                    self._folder_links.append((folder, name))
                else:
                    return self._inner(folder, name)
        elif is_link:
            self._file_links.append((folder, name))
        elif entry.is_file(follow_symlinks=False):
            self._file(folder, name)
        else:  # a pipe, a socket, a device: reading it may never end
            self._passed.odd.append(join(folder.path, name))
        return None

    def _inner(self, folder: Folder, name: str) -> Folder:
        inner = folder.folders[name] = Folder(name, join(folder.path, name))
        self._seen.add(_identity(self._root / inner.path))
        return inner

    def _file(self, folder: Folder, name: str) -> None:
        suffix = _suffix(name)
        if suffix in READABLE:
            folder.images.append(name)
            return
        folder.others.append(name)
        if suffix not in _COMPANIONS and name.lower() not in _NAMED_COMPANIONS:
            self._passed.suffixes[suffix or "without a suffix"] += 1

    def _follow(self, folder: Folder, name: str) -> None:
        place = join(folder.path, name)
        if _identity(self._root / place) in self._seen:
            self._passed.back.append(place)
        else:
            self._look([self._inner(folder, name)])

    def _take_file_links(self) -> None:
        if not self._file_links:
            return
        seen = set(map(_identity, self._taken()))
        for folder, name in sorted(self._file_links, key=lambda link: join(link[0].path, link[1])):
            place = join(folder.path, name)
            try:
                status = os.stat(self._root / place)
            except OSError:
                self._file(folder, name)  # leads nowhere: a broken image, if it has the name of one
                continue
            if not stat.S_ISREG(status.st_mode):
                self._passed.odd.append(place)
            elif (key := (status.st_dev, status.st_ino)) in seen and _suffix(name) in READABLE:
                self._passed.back.append(place)
            else:
                seen.add(key)
                self._file(folder, name)

    def _taken(self) -> Iterable[Path]:
        return (self._root / folder.path / name for folder in self._top.below() for name in folder.images)


_NAMED_COMPANIONS = {"license", "licence", "readme", "makefile", "thumbs.db"}


def _hidden(name: str, is_folder: bool) -> bool:
    """As for Hugging Face `datasets`: what programs put there, `.ipynb_checkpoints`, `._x.jpg`, `__MACOSX`."""
    return name.startswith((".", "__") if is_folder else ".")


def _depth(link: tuple[Folder, str]) -> tuple[int, str]:
    return link[0].path.count("/"), join(link[0].path, link[1])


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
