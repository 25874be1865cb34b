"""The interface of a reader: it recognises a format by contents, and reads what is there as drafts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dd.exchange.draft import Asked, Draft
from dd.exchange.source import ForeignFiles


@dataclass(frozen=True)
class Recognised:
    """That files are of a format.

    Attributes:
        format: its name, as `format=NAME` picks it.
        evidence: what it was recognised by, one line each.
        certain: whether nothing else looks so; of several formats a certain one wins, and two uncertain ones are
            refused with both names.
    """

    format: str
    evidence: tuple[str, ...]
    certain: bool = True


PARTIAL = ("ipc", "rows", "label")
"""Fields of `Asked` that only some readers use."""


class Reader(ABC):
    """A family of formats.

    A reader runs nothing that is in a file, takes no memory for what a header merely declares, and writes nothing.

    Attributes:
        formats: names of the formats it reads, with a line on each.
        keys: those keys of `PARTIAL` that it uses.
    """

    formats: ClassVar[dict[str, str]]
    keys: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """Return the formats that the files may be of; none if this reader knows none of them.

        It looks at contents (keys, shapes, types), never at names alone, and raises nothing for files that are not its
        own.
        """

    @abstractmethod
    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """Read the sets in the files, in their order.

        Raises:
            UsageError: they are damaged, or something must be said first; one line, with what to type.
        """


def files_in_words(paths: Sequence[Path]) -> str:
    """Name files in words: one by its name, several by the first and how many there are."""
    first = str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
