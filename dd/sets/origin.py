"""The origin of an imported set, and the accuracies that its authors state; stored in its provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from dd.io.typed import typed

_Words = Annotated[str, Field(max_length=2000)]
Percentage = Annotated[float, Field(ge=0, le=100)]
KEY = "imported"  # of provenance


@dataclass(frozen=True)
class StatedScore:
    """Accuracies in percent that a third-party file or record states, under its own protocol."""

    values: Annotated[tuple[Percentage, ...], Field(min_length=1, max_length=10_000)]
    """One accuracy per student, or a single mean."""
    std: Annotated[float, Field(ge=0, le=100)] | None = None
    """Standard deviation, if only mean and standard deviation are stated."""
    where: _Words = ""
    """The conditions, such as a network or a protocol."""


@dataclass(frozen=True)
class OriginFile:
    """A file that a set was imported from."""

    name: _Words
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Imported:
    """How a set was imported."""

    format: _Words
    """Name of the format, such as "dc" or "mtt"."""
    files: Annotated[tuple[OriginFile, ...], Field(max_length=1000)] = ()
    """The files that were read; a folder of images is a single entry."""
    entry: _Words = ""
    """Which set was imported, if a file holds several."""
    evidence: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    """The evidence by which the format was recognised."""
    assumed: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    """Assumptions about what the file does not state, each with the key that overrides it."""
    stated: Annotated[tuple[StatedScore, ...], Field(max_length=1000)] = ()
    """Scores that the file states."""


def imported(provenance: Mapping[str, Any]) -> Imported | None:
    """The import record in a set's provenance; None for a set that was distilled here.

    Raises:
        UsageError: the record is invalid.
    """
    found = provenance.get(KEY)
    return None if found is None else typed(Imported, found, f"provenance.{KEY}")
