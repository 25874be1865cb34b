"""Read and write a distilled set as one self-describing safetensors file.

Format version 2 has the tensors "images" and "labels", and four metadata strings: "format" (always
"dd-distilled-set"), "version" ("2"), "manifest" (a JSON object with every other field of `DistilledSet`) and "sha256"
(a hash of everything else).  Labels of augmented views do not fit into one tensor: "labels" then holds the classes of
the images, and the manifest's "views" states what determines the labels, which `dd.labels` stores beside the file.
Version 1 has no hash.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from dd.errors import UsageError
from dd.io import digest, existing, load_tensors, read_tensors, save_tensors, user_path
from dd.io.typed import typed
from dd.runs import RunFolder
from dd.sets import _hashes
from dd.sets.distilled import NO_FACTS, TENSORS, DistilledSet

FORMAT = "dd-distilled-set"
VERSION = 2
_HASH = "sha256"
_LONGEST = 4 << 20  # most characters of a manifest; 21,000 classes need a tenth of that


def save(distilled: DistilledSet, path: Path | str) -> None:
    """Write a set to one file, atomically; equal sets give equal bytes.

    A label store beside the file that the set was read from is copied beside the new file.

    Raises:
        UsageError: the set is invalid (see `DistilledSet.check`), its label store is missing, or the target folder
            holds other labels.
        RunError: the disk is full.
    """
    distilled.check()
    path = user_path(path)
    if distilled.views is not None and distilled.path is not None:
        beside, there = distilled.path.parent, path.parent
        if beside.resolve() != there.resolve():
            distilled.label_store().copy(there)
    manifest = json.dumps(distilled.facts(), sort_keys=True, ensure_ascii=False)
    metadata = {"format": FORMAT, "version": str(VERSION), "manifest": manifest}
    tensors = {"images": distilled.images, "labels": distilled.labels}
    save_tensors(path, tensors, {**metadata, _HASH: _hash(tensors, metadata)})


def load(path: Path | str) -> DistilledSet:
    """Read a set that `save` wrote; the tensors are bit-identical and on the CPU.

    Args:
        path: its file, or the folder of the run that made it.

    Raises:
        UsageError: the file is missing, damaged, of another format or of a newer version; the message names file and
            field.
    """
    path = set_file(path)
    metadata, tensors = _read(path, read_tensors)  # copies: a set must not change when its file does
    if metadata.get("format") != FORMAT:
        raise UsageError(
            f"{path} is a safetensors file, but not a distilled set (its field 'format' is not {FORMAT!r})"
        )
    version = _version(path, metadata.get("version", ""))
    metadata = _held(path, version, metadata, tensors)
    distilled = DistilledSet(**tensors, **_manifest(path, metadata["manifest"]), path=path)
    try:
        distilled.check()
    except UsageError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return distilled


def seal(path: Path) -> str:
    """The hash stored in the file of a set; "" for a file of version 1."""
    return _read(path, load_tensors)[0].get(_HASH, "")


def set_file(path: Path | str, what: str = "") -> Path:
    """The file of a set, given that file or the folder of its run; see `user_path`."""
    path = user_path(path, what)
    return RunFolder(path).set if os.path.isdir(path) else path


def _read(path: Path, tensors_of: Callable[[Path], dict[str, Tensor]]) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if os.path.exists(path):
        existing(path, f"cannot read the distilled set {path}")
    elif os.path.isdir(path.parent) and path == RunFolder(path.parent).set:
        raise UsageError(f"{path.parent} is a folder without a set ({path.name}); `dd run` writes one at its end")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return metadata, tensors_of(path)
    except OSError as error:
        raise UsageError(f"cannot read the distilled set {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            begin = file.read(2)
        if begin in (b"PK", b"\x80\x02"):
            why = "is a pickle or zip (.pt), not a distilled set; only safetensors files are read"
        else:
            why = f"is not a safetensors file, or a truncated one ({error})"
        raise UsageError(f"{path} {why}") from error


def _version(path: Path, text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise _damaged(path, f"its field 'version' is {text[:20]!r}")
    if int(text) > VERSION:
        raise UsageError(f"{path} was written by a newer dd (format version {text}, this is {VERSION}); upgrade dd")
    return int(text)


def _held(path: Path, version: int, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Verify the hash and return the metadata without it."""
    fields = {"format", "version", "manifest"} | ({_HASH} if version > 1 else set())
    for kind, found, wanted in (("tensor", set(tensors), set(TENSORS)), ("field", set(metadata), fields)):
        for name in sorted(found ^ wanted):
            raise _damaged(path, f"it has no {kind} {name!r}" if name in wanted else f"{kind} {name[:20]!r} is strange")
    if version == 1:
        return metadata
    rest = {name: text for name, text in metadata.items() if name != _HASH}
    if metadata[_HASH] != _hash(tensors, rest):
        raise _damaged(path, "its hash is wrong")
    return rest


def _hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest([{name: _hashes.sha256(name, tensors[name]) for name in TENSORS}, dict(metadata)], length=64)


def _manifest(path: Path, text: str) -> dict[str, Any]:
    from pydantic_core import from_json

    if len(text) > _LONGEST:
        raise _damaged(path, f"its manifest has {len(text):,} characters, more than {_LONGEST:,}")
    try:
        return vars(typed(_model(), from_json(text), ""))
    except ValueError as error:
        raise _damaged(path, f"its manifest: Invalid JSON: {error}") from error
    except UsageError as error:
        raise _damaged(path, f"its manifest is wrong: {error}") from error


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {why}")


@cache
def _model() -> type[Any]:
    """The manifest's schema, derived from the fields of `DistilledSet`: all are required, others are rejected."""
    hints = get_type_hints(DistilledSet)
    return make_dataclass("Manifest", [(f.name, hints[f.name]) for f in fields(DistilledSet) if f.name not in NO_FACTS])
