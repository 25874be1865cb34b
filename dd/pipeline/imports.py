"""Import of sets from other projects: the library function behind `dd import`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd.errors import UsageError
from dd.exchange.front import matched
from dd.exchange.match import Matched
from dd.io import user_path, writable
from dd.pipeline.exports import named
from dd.pipeline.foreign import remember
from dd.pipeline.meant import meant_for
from dd.sets import DistilledSet, load, save
from dd.sets.origin import Imported, imported

_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Saved:
    """An imported set and its file.

    Attributes:
        path: the file.
        set: the set.
        origin: the imported files.
        checked: one line on how well it fits the real images.
    """

    path: Path
    set: DistilledSet
    origin: Imported
    checked: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        made, origin = self.set, self.origin
        stated = [{"values": list(one.values), "std": one.std, "where": one.where} for one in origin.stated]
        return {
            "path": str(self.path),
            "format": origin.format,
            "entry": origin.entry,
            "images": made.n,
            "image_kind": made.image_kind,
            "label_kind": made.label_kind,
            "ipc": made.ipc,
            "lr": made.lr,
            "protocol": None if made.protocol is None else made.protocol["protocol"],
            "evidence": list(origin.evidence),
            "assumed": list(origin.assumed),
            "checked": self.checked,
            "stated": stated,
        }


def import_files(
    paths: Sequence[str | Path], said: Mapping[str, Any], out: str | Path | None = None, *, force: bool = False
) -> list[Saved]:
    """Import sets and save each; all sets are checked before the first is written.

    Args:
        paths: files that belong together, or a folder.
        said: options, by field of `Asked`.
        out: a file, or a folder; with several sets, the entry number is appended to each name. None for the current
            folder, with files named after data set, format and images per class.
        force: replace existing files.

    Raises:
        UsageError: see `import_sets`; or a file exists.
        RunError: the disk is full.
    """
    found = matched(paths, said)
    files = _files([one.set for one in found], None if out is None else str(out))
    for file, one in zip(files, found, strict=True):
        meant_for(one.set)
        if not force and file.exists() and not _same(file, one):
            raise UsageError(f"{file} is there already, with another content: say force=true, or out=PATH")
    for folder in {file.parent for file in files}:
        writable(folder, "choose another place with out=PATH")
    return [_saved(file, one) for file, one in zip(files, found, strict=True)]


def _saved(file: Path, one: Matched) -> Saved:
    save(one.set if one.labels is None else one.labels(file.parent), file)
    remember(file)
    origin = imported(one.set.provenance)
    assert origin is not None, "every import says where it is from"
    return Saved(file, load(file), origin, one.remark)


def _same(file: Path, one: Matched) -> bool:
    try:
        there = load(file)
        if one.labels is not None:  # compared when they are written
            return there.views is not None and there.labelled_sha256() == one.set.labelled_sha256()
        return there.digest() == one.set.digest()
    except UsageError:
        return False


def _files(found: Sequence[DistilledSet], out: str | None) -> list[Path]:
    """Return the file of each set."""
    path = user_path("." if out is None else out, "out", absolute=False)
    folder = out is None or out.endswith("/") or path.is_dir()
    if not folder and path.suffix != _SUFFIX:
        raise UsageError(f"out={out}: a set's file ends in {_SUFFIX}; a folder in /")
    files = []
    for one in found:
        origin = imported(one.provenance)
        entry = f"-{origin.entry}" if origin is not None and origin.entry and len(found) > 1 else ""
        base = path / named(one, uneven=f"n{one.n}") if folder else path.with_suffix("")
        files.append(base.with_name(f"{base.name}{entry}{_SUFFIX}"))
    return files
