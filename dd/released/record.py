"""The typed record of a released set: metadata only, never its data."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from dd.io import digest
from dd.licences import NOT_STATED

Text = Annotated[str, Field(max_length=2000)]
Percent = Annotated[float, Field(ge=0, le=100)]
Status = Literal["ok", "gone", "unchecked"]

NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]*(?:/[a-z0-9][a-z0-9.+_-]*)+")
"""Names contain a slash, which sets them apart from files in the current folder."""


@dataclass(frozen=True)
class ReleasedFile:
    """One file of a released set."""

    path: Annotated[str, Field(min_length=1, max_length=500)]
    """Path relative to each place of the record, with forward slashes; also the local path."""
    size: Annotated[int, Field(ge=0)] | None = None
    """Size in bytes; None if not published."""
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Hexadecimal digits; "" if not published."""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        # no path outside of its folder on any system, and no hidden files
        if self.path.startswith("/") or any(p.startswith(".") for p in parts) or set(self.path) & set('\\:*?"<>|\0'):
            raise ValueError(f"path {self.path!r} is not one below a folder")


@dataclass(frozen=True)
class ReleasedScore:
    """Accuracy of students of a set in percent, with the deviation between students and the conditions."""

    protocol: Text
    """Name of the evaluation protocol, or the authors of the evaluation."""
    mean: Percent
    std: Annotated[float, Field(ge=0, le=100)] | None = None
    students: Annotated[int, Field(ge=1)] | None = None
    student: Text = ""
    """Network of the students."""
    control: Percent | None = None
    """Accuracy of as many random real images under the same protocol."""
    control_std: Annotated[float, Field(ge=0, le=100)] | None = None
    by: Text = "its authors"
    """The author of the measurement."""
    device: Text = ""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Number of CPU threads."""
    seeds: Text = ""
    """Seeds of the run and its students."""
    fingerprint: Text = ""
    """Fingerprint of protocol, network and augmentation, as in reports."""

    def band(self) -> str:
        """Return mean and deviation as text."""
        return _band(self.mean, self.std)

    def in_words(self) -> str:
        """Return the score with all conditions that comparisons must consider."""
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
    """A released set and its places.

    `dataset`, `format`, `value_space`, `class_order`, `augment`, `factor`, `entry` and `protocol` are options of `dd
    import`; "" and None leave the choice to the files.
    """

    name: Annotated[str, Field(max_length=200)]
    """Unique name, "METHOD/DATASET-ipcN"."""
    method: Text
    dataset: Text
    """Our name of the real data that it stands for."""
    ipc: Annotated[int, Field(ge=1)] | None = None
    where: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    """Places with the same files, tried in order: "package:FOLDER", "https://HOST/FOLDER", "hf:USER/NAME@REVISION",
    "PROTOCOL://…" of fsspec, or a local folder.
    """
    files: Annotated[tuple[ReleasedFile, ...], Field(max_length=10_000)] = ()
    """Files at each of these places; () for all files of a Hub repository."""
    page: Text = ""
    """Web page for manual download, if programs cannot fetch the set."""
    format: Text = "dd"
    """"dd" for our own format, or the name of a format of `dd import`."""
    status: Status = "unchecked"
    """Whether the set was found at its place."""
    licence: Text = NOT_STATED
    """Licence of the set, as stated by its authors."""
    data_licence: Text = NOT_STATED
    """Licence of the real data, as stated by their owners."""
    labels: Text = ""
    """Description of its labels for readers."""
    value_space: Text = ""
    class_order: Text = ""
    augment: Text = ""
    factor: Annotated[int, Field(ge=1, le=16)] | None = None
    entry: Annotated[int, Field(ge=0)] | None = None
    protocol: Text = ""
    """Our protocol nearest to the authors' evaluation."""
    by: Text = ""
    """Authors of the set."""
    paper: Text = ""
    citation: Text = ""
    """BibTeX entry."""
    command: Text = ""
    """Command that made the set."""
    version: Text = ""
    """Version of dd, if dd made the set."""
    scores: Annotated[tuple[ReleasedScore, ...], Field(max_length=100)] = ()
    note: Text = ""
    """Remarks for users."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not METHOD/DATASET-ipcN in small letters")
        paths = [file.path for file in self.files]
        if len(set(paths)) < len(paths):
            raise ValueError(f"files of {self.name} have the same path")

    @property
    def size(self) -> int | None:
        """Total size in bytes; None unless all sizes are known."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if sizes and len(sizes) == len(self.files) else None

    @property
    def is_shipped(self) -> bool:
        """Whether the set ships with this package."""
        return bool(self.where) and self.where[0].startswith("package:")

    @property
    def is_sealed(self) -> bool:
        """Whether the record has checksums of all files."""
        return bool(self.files) and all(file.sha256 for file in self.files)

    def key(self) -> str:
        """Hash everything that determines the local copy: files, and how they are read."""
        read = (self.value_space, self.class_order, self.augment, self.factor, self.entry)
        files = [(file.path, file.size, file.sha256) for file in self.files]
        return digest([list(self.where), [list(f) for f in files], self.format, self.dataset, list(read)])

    def words(self) -> str:
        """Return the text that `search` matches, in lower case."""
        ipc = "" if self.ipc is None else f"ipc{self.ipc} ipc={self.ipc}"
        texts: list[Any] = [self.name, self.method, self.dataset, ipc, self.format, self.status, self.licence]
        return " ".join(map(str, [*texts, self.labels, self.by, self.note, *self.where, self.page])).lower()
