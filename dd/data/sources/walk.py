"""Find the image files below a folder without opening them, and record what was skipped."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dd.errors import UsageError

# lower-case suffixes of image files that Pillow decodes; only the first frame of an animation is used
# fmt: off
READABLE = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
_SHOWN = 3  # names in a note
# files that often accompany images and need no note
# fmt: off
_COMPANIONS = {
    ".bib", ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log", ".m",
    ".mat", ".md", ".md5", ".pdf", ".py", ".rst", ".sh", ".sha256", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml",
    ".yaml", ".yml",
}
# fmt: on


@dataclass(eq=False)
class Folder:
    """A folder and its content, without hidden entries.

    Attributes:
        name: its own name.
        path: relative to the root, with "/" as separator; "" for the root.
        images: names of its image files, sorted.
        others: names of its other files.
        folders: its subfolders by name, sorted, including those without images.
    """

    name: str
    path: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    @cached_property
    def filled(self) -> dict[str, "Folder"]:
        """The subfolders that hold images, at any depth."""
        return {name: folder for name, folder in self.folders.items() if folder.images or folder.filled}

    @property
    def empty(self) -> list["Folder"]:
        """The subfolders that hold no images."""
        return [folder for name, folder in self.folders.items() if name not in self.filled]

    def below(self) -> Iterator["Folder"]:
        """This folder and all its descendants."""
        yield self
        for folder in self.folders.values():
            yield from folder.below()

    def files(self) -> list[str]:
        """Paths of all its images, relative to the root, folder by folder in the order of the folders' paths."""
        folders = sorted(self.below(), key=lambda folder: folder.path)
        return [join(folder.path, name) for folder in folders for name in folder.images]


@dataclass
class Passed:
    """What was skipped."""

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    odd: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Notes for the user."""
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
    """Walk all folders below `root`; also returns what was skipped: hidden entries, links back, other files.

    Every folder and file counts once, by its real path; real entries take precedence over links.

    Args:
        root: an absolute path.
        only: the direct subfolders to walk; None: all.

    Raises:
        UsageError: a folder cannot be read.
    """
    return _Walk(root, only).run()


def join(folder: str, name: str) -> str:
    """Join a relative folder path and a name."""
    return f"{folder}/{name}" if folder else name


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


class _Walk:
    def __init__(self, root: Path, only: Sequence[str] | None) -> None:
        self._root, self._only = root, None if only is None else set(only)
        self._top, self._passed = Folder(root.name, ""), Passed()
        # a link to a parent folder leads back too
        self._seen = {_identity(folder) for folder in (root, *root.resolve().parents)}
        self._folder_links: list[tuple[Folder, str]] = []
        self._file_links: list[tuple[Folder, str]] = []

    def run(self) -> tuple[Folder, Passed]:
        self._look([self._top])
        while self._folder_links:
            # shallowest first, so that a class that is a link precedes links inside classes
            link = min(self._folder_links, key=_depth)
            self._folder_links.remove(link)
            self._follow(*link)
        self._take_file_links()
        for folder in self._top.below():
            folder.images.sort()
            folder.folders = dict(sorted(folder.folders.items()))
        return self._top, self._passed

    def _look(self, waiting: list[Folder]) -> None:
        """Fill these folders and their descendants, without following links."""
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
        """Record one entry of a folder; returns the subfolder to walk, if it is one."""
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
        else:  # a pipe, a socket or a device: reading it might block forever
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
                self._file(folder, name)  # a dangling link: a broken image, if it is named like one
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
    """Whether programs created it, by the rules of Hugging Face `datasets`, for example `__MACOSX`."""
    return name.startswith((".", "__") if is_folder else ".")


def _depth(link: tuple[Folder, str]) -> tuple[int, str]:
    return link[0].path.count("/"), join(link[0].path, link[1])


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
