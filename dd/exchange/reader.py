"""The interface of a reader, which recognises formats by contents and reads files as drafts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dd.exchange.draft import Asked, Draft
from dd.exchange.source import ForeignFiles


@dataclass(frozen=True)
class Recognised:
    """A format that files match.

    Attributes:
        format: name of the format, a value of `format=NAME`.
        evidence: the features by which it was recognised, one line each.
        certain: whether no other format has these features. A certain match wins over others; two uncertain ones are
            refused with both names.
    """

    format: str
    evidence: tuple[str, ...]
    certain: bool = True


PARTIAL = ("ipc", "rows", "label")
"""Fields of `Asked` that only some readers use."""


class Reader(ABC):
    """A family of formats.

    A reader runs no code from a file, allocates no memory that a header merely declares, and writes nothing.

    Attributes:
        formats: the formats that it reads, with one line on each.
        keys: the keys of `PARTIAL` that it uses.
    """

    formats: ClassVar[dict[str, str]]
    keys: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """Return the formats that the files match; empty if there are none.

        It inspects contents (keys, shapes, types), never only names, and raises no errors for files of other readers.
        """

    @abstractmethod
    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """Read the sets in the files, in their order.

        Raises:
            UsageError: the files are damaged, or need a further option, which the message names.
        """


def files_in_words(paths: Sequence[Path]) -> str:
    """Describe files: a single one by name, several by the first name and their number."""
    first = str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
