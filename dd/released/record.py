"""What is known of a released set: one typed record, never its data."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from dd.io import digest

Text = Annotated[str, Field(max_length=2000)]
Percent = Annotated[float, Field(ge=0, le=100)]
Status = Literal["ok", "gone", "unchecked"]

NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]*(?:/[a-z0-9][a-z0-9.+_-]*)+")
"""A name has a slash, and so is taken for nothing that is beside the user."""


@dataclass(frozen=True)
class ReleasedFile:
    """One file of a released set."""

    path: Annotated[str, Field(min_length=1, max_length=500)]
    """Below the place that the record names, with forward slashes; also what it is called here."""
    size: Annotated[int, Field(ge=0)] | None = None
    """In bytes; None where nobody states it."""
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """In hexadecimal digits; "" where nobody states it."""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        # nothing outside of its folder, on no system, and nothing hidden
        if self.path.startswith("/") or any(p.startswith(".") for p in parts) or set(self.path) & set('\\:*?"<>|\0'):
            raise ValueError(f"path {self.path!r} is not one below a folder")


@dataclass(frozen=True)
class ReleasedScore:
    """What students of a set reached, and how: in percent, with the deviation between students."""

    protocol: Text
    """Name of the evaluation protocol, or whose evaluation it was."""
    mean: Percent
    std: Annotated[float, Field(ge=0, le=100)] | None = None
    students: Annotated[int, Field(ge=1)] | None = None
    student: Text = ""
    """The network."""
    control: Percent | None = None
    """As many random real images, under the same protocol."""
    control_std: Annotated[float, Field(ge=0, le=100)] | None = None
    by: Text = "its authors"
    """Who measured it."""
    device: Text = ""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads that it was measured with."""
    seeds: Text = ""
    """Of the run and its students."""
    fingerprint: Text = ""
    """Of protocol, network and augmentation, as reports state it."""

    def band(self) -> str:
        """Mean and deviation."""
        return _band(self.mean, self.std)

    def in_words(self) -> str:
        """The score with all it must be read with."""
        real = "no control stated" if self.control is None else ""
        facts = (
            f"protocol {self.protocol}",
            _counted(self.students, "student"),
            self.student,
            real or f"random real images {_band(self.control or 0.0, self.control_std)}",
            f"on {self.device}" if self.device else "",
            _counted(self.threads, "thread"),
            self.seeds,
            f"by {self.by}",
        )
        return f"{self.band()} % ({', '.join(filter(None, facts))})"


def _counted(number: int | None, what: str) -> str:
    return "" if number is None else f"{number} {what}{'' if number == 1 else 's'}"


def _band(mean: float, std: float | None) -> str:
    return f"{mean:g}" + ("" if std is None else f" ± {std:g}")


@dataclass(frozen=True)
class Released:
    """A set that somebody released, and where.

    What its files mean (`dataset`, `format`, `value_space`, `class_order`, `augment`, `factor`, `entry`, `protocol`) is
    told to `dd import`; "" and None leave it to the files.
    """

    name: Annotated[str, Field(max_length=200)]
    """As it is asked for: "METHOD/DATASET-ipcN"."""
    method: Text
    dataset: Text
    """The real data that it stands for, by our name."""
    ipc: Annotated[int, Field(ge=1)] | None = None
    where: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    """Places of the same files, tried in order: "package:FOLDER", "https://HOST/FOLDER", "hf:USER/NAME@REVISION",
    "PROTOCOL://…" of fsspec, or a local folder.
    """
    files: Annotated[tuple[ReleasedFile, ...], Field(max_length=10_000)] = ()
    """Below each of these places; () for all files of a Hub repository."""
    page: Text = ""
    """Where people get it, where no program can."""
    format: Text = "dd"
    """"dd" for our own files, or the name of a format as `dd import` recognises it."""
    status: Status = "unchecked"
    """Whether it was seen there."""
    licence: Text = "not stated"
    """Of the set, as its authors state it."""
    data_licence: Text = "not stated"
    """Of the real data that it was made from, as their owners state it."""
    labels: Text = ""
    """What its labels are, for people."""
    value_space: Text = ""
    class_order: Text = ""
    augment: Text = ""
    factor: Annotated[int, Field(ge=1, le=16)] | None = None
    entry: Annotated[int, Field(ge=0)] | None = None
    protocol: Text = ""
    """Name of ours that is nearest to its authors' evaluation."""
    by: Text = ""
    """Who made it."""
    paper: Text = ""
    citation: Text = ""
    """BibTeX."""
    command: Text = ""
    """What made it."""
    version: Text = ""
    """Of dd, where dd made it."""
    scores: Annotated[tuple[ReleasedScore, ...], Field(max_length=100)] = ()
    note: Text = ""
    """What one must know to use it."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not METHOD/DATASET-ipcN in small letters")
        paths = [file.path for file in self.files]
        if len(set(paths)) < len(paths):
            raise ValueError(f"files of {self.name} have the same path")

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where not all are stated."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if sizes and len(sizes) == len(self.files) else None

    @property
    def is_shipped(self) -> bool:
        """Whether it is a part of this package."""
        return bool(self.where) and self.where[0].startswith("package:")

    @property
    def is_sealed(self) -> bool:
        """Whether the record says which bytes the set is."""
        return bool(self.files) and all(file.sha256 for file in self.files)

    def key(self) -> str:
        """Hash of all that decides what is kept of it here: another one for other files, or another reading."""
        read = (self.value_space, self.class_order, self.augment, self.factor, self.entry)
        files = [(file.path, file.size, file.sha256) for file in self.files]
        return digest([list(self.where), [list(f) for f in files], self.format, self.dataset, list(read)])

    def words(self) -> str:
        """All that a search looks at, in small letters."""
        ipc = "" if self.ipc is None else f"ipc{self.ipc} ipc={self.ipc}"
        texts: list[Any] = [self.name, self.method, self.dataset, ipc, self.format, self.status, self.licence]
        return " ".join(map(str, [*texts, self.labels, self.by, self.note, *self.where, self.page])).lower()
