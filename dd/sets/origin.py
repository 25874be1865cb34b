"""Where an imported set comes from, and what its authors say that it reaches: plain values of its provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from dd.io.typed import typed

_Words = Annotated[str, Field(max_length=2000)]
_Percentage = Annotated[float, Field(ge=0, le=100)]
KEY = "imported"  # of provenance


@dataclass(frozen=True)
class StatedScore:
    """Accuracies that somebody else's file or record states, in percent: of their protocol, not ours."""

    values: Annotated[tuple[_Percentage, ...], Field(min_length=1, max_length=10_000)]
    """One number per student, or a single mean."""
    std: Annotated[float, Field(ge=0, le=100)] | None = None
    """Their deviation, where only mean and deviation are stated."""
    where: _Words = ""
    """Under what they were reached: a network, a protocol."""


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
    """Name of the reader's format: "dc", "mtt"."""
    files: Annotated[tuple[OriginFile, ...], Field(max_length=1000)] = ()
    """What was read; of folders of images a single entry stands for all."""
    entry: _Words = ""
    """Which set of a file of several."""
    evidence: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    """What the format was recognised by."""
    assumed: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    """What was not in the file and had to be assumed, each with the key that says otherwise."""
    stated: Annotated[tuple[StatedScore, ...], Field(max_length=1000)] = ()
    """Scores that the file states."""


def imported(provenance: Mapping[str, Any]) -> Imported | None:
    """What a set's provenance says of its import; None for one that was distilled here.

    Raises:
        UsageError: it is not what an import writes.
    """
    found = provenance.get(KEY)
    return None if found is None else typed(Imported, found, f"provenance.{KEY}")
