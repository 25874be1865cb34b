"""The registry of readers, and the choice of one for given files."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module

from dd.errors import UsageError, unknown
from dd.exchange.draft import Asked, Draft
from dd.exchange.reader import PARTIAL, Reader, Recognised, files_in_words
from dd.exchange.source import TENSORS, ForeignFiles
from dd.exchange.tree import outline

_HOMES = tuple(
    f"dd.exchange.{name}" for name in ("experiments", "plain", "jax", "folders", "tables", "grids", "positions")
)
"""Modules of readers, each with a list `READERS`."""


@cache
def readers() -> tuple[Reader, ...]:
    """Return all readers."""
    return tuple(reader for home in _HOMES for reader in import_module(home).READERS)


def drafts(source: ForeignFiles, asked: Asked) -> list[Draft]:
    """Read the sets in files, without converting them.

    Raises:
        UsageError: the files match no known format, or several between which `format=` must decide; or they are
            damaged.
    """
    reader, recognised = _chosen(source, asked)
    for key in PARTIAL:
        if getattr(asked, key) is not None and key not in reader.keys:
            raise UsageError(
                f"{files_in_words(source.paths)}: {key}={getattr(asked, key)} does not apply to the format "
                f"{recognised.format}; leave it out"
            )
    found = list(reader.read(source, recognised, asked))
    return _entry(found, source, asked)


def _chosen(source: ForeignFiles, asked: Asked) -> tuple[Reader, Recognised]:
    found = [(reader, one) for reader in readers() for one in reader.recognise(source)]
    if asked.format is not None:
        every = {name for reader in readers() for name in reader.formats}
        if asked.format not in every:
            raise unknown("format", asked.format, every)
        found = [(reader, one) for reader, one in found if one.format == asked.format]
        if not found:
            raise UsageError(
                f"{files_in_words(source.paths)}: not of the format {asked.format}: {_known(asked.format)}"
            )
    certain = [pair for pair in found if pair[1].certain]
    found = certain if len(certain) == 1 else found
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{files_in_words(source.paths)}: {_unknown(source)}")
    choices = "; or ".join(f"format={one.format} ({_known(one.format)})" for _, one in found)
    raise UsageError(f"{files_in_words(source.paths)} match several formats; choose one: {choices}")


def _unknown(source: ForeignFiles) -> str:
    """Return what is wrong with files that match no known format together."""
    if len(source.paths) > 1:
        alone = ForeignFiles(source.paths[:1])
        if any(one.certain for reader in readers() for one in reader.recognise(alone)):
            return "these do not belong together, the first is a set by itself: import one after the other"
    return f"no known format of distilled sets: {_contents(source)}"


def _known(name: str) -> str:
    return next(reader.formats[name] for reader in readers() if name in reader.formats)


def _contents(source: ForeignFiles) -> str:
    """Describe the contents of files of no known format."""
    kinds = {source.container(path) for path in source.paths}
    if kinds <= set(TENSORS):
        return " and ".join(outline(source.content(path)) for path in source.paths[:3])
    if kinds == {"other"}:
        return "neither torch's .pt, nor .npz, .npy, msgpack, parquet or images"
    return " and ".join(sorted(kinds))


def _entry(found: Sequence[Draft], source: ForeignFiles, asked: Asked) -> list[Draft]:
    if not isinstance(asked.entry, int) or (asked.entry == 0 and [draft.entry for draft in found] == [""]):
        return list(found)
    picked = [draft for draft in found if draft.entry == str(asked.entry)]
    if not picked:
        there = ", ".join(draft.entry for draft in found if draft.entry) or "a single one"
        raise UsageError(f"{files_in_words(source.paths)}: there is no entry={asked.entry}; it holds {there}")
    return picked
