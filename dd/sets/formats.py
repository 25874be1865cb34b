"""A distilled set as one self-describing safetensors file.

Format, version 1: the tensors "images" and "labels", and metadata with three texts: "format" (always
"dd-distilled-set"), "version" ("1"), and "manifest", a JSON object with every other field of `DistilledSet` by name.
Labels of augmented views do not fit into one tensor: "labels" then holds the classes of the images, and the manifest's
"views" says what determines the labels, which `dd.labels` keeps beside the file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from dd.errors import UsageError
from dd.io import existing, load_tensors, save_tensors, user_path
from dd.runs import RunFolder
from dd.sets.distilled import NO_FACTS, TENSORS, DistilledSet

FORMAT = "dd-distilled-set"
VERSION = 1


def save(distilled: DistilledSet, path: Path | str) -> None:
    """Write a set to one file, atomically; equal sets give equal bytes.

    Labels of views that lie beside the file the set was read from are copied beside the new one.

    Raises:
        UsageError: the set is not whole (see `DistilledSet.check`), its labels of views are not there, or others are
            where they would go.
        RunError: the disk is full.
    """
    distilled.check()
    path = user_path(path)
    if distilled.views is not None and distilled.path is not None:
        beside, there = distilled.path.parent, path.parent
        if beside.resolve() != there.resolve():
            distilled.label_store().copy(there)
    manifest = json.dumps(distilled.facts(), sort_keys=True, ensure_ascii=False)
    tensors = {"images": distilled.images, "labels": distilled.labels}
    save_tensors(path, tensors, {"format": FORMAT, "version": str(VERSION), "manifest": manifest})


def load(path: Path | str) -> DistilledSet:
    """Read a set that `save` wrote; tensors are on the CPU, bit for bit as they were.

    Args:
        path: its file, or the folder of the run that made it.

    Raises:
        UsageError: the file is missing, truncated, of another format or of a newer version; file and field are named.
    """
    path = set_file(path)
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(
            f"{path} is a safetensors file, but not a distilled set (its field 'format' is not {FORMAT!r})"
        )
    _check_version(path, metadata.get("version", ""))
    for name in TENSORS:
        if name not in tensors:
            raise UsageError(f"{path} is damaged: it has no tensor {name!r}")
    manifest = _manifest(path, metadata.get("manifest"))
    # copied out of the memory map: a set must not change when its file does
    distilled = DistilledSet(images=tensors["images"].clone(), labels=tensors["labels"].clone(), **manifest, path=path)
    try:
        distilled.check()
    except UsageError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return distilled


def set_file(path: Path | str, what: str = "") -> Path:
    """The file of a set that is named by itself or by the folder of its run; see `user_path`."""
    path = user_path(path, what)
    return RunFolder(path).set if os.path.isdir(path) else path


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if os.path.exists(path):
        existing(path, f"cannot read the distilled set {path}")
    elif os.path.isdir(path.parent) and path == RunFolder(path.parent).set:
        raise UsageError(f"{path.parent} is a folder without a set ({path.name}); `dd run` writes one at its end")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return metadata, load_tensors(path)
    except OSError as error:
        raise UsageError(f"cannot read the distilled set {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            begin = file.read(2)
        if begin in (b"PK", b"\x80\x02"):
            why = "is a pickle or zip (.pt), not a distilled set; only safetensors files are read"
        else:
            why = f"is no safetensors file, or a truncated one ({error})"
        raise UsageError(f"{path} {why}") from error


def _check_version(path: Path, version: str) -> None:
    if not version.isdecimal() or int(version) < 1:
        raise UsageError(f"{path} is damaged: its field 'version' is {version!r}")
    if int(version) > VERSION:
        raise UsageError(f"{path} was written by a newer dd (format version {version}, this is {VERSION}); upgrade dd")


def _manifest(path: Path, text: str | None) -> dict[str, Any]:
    from pydantic import ValidationError

    if text is None:
        raise UsageError(f"{path} is damaged: it has no field 'manifest'")
    try:
        return dict(_model().model_validate_json(text, strict=True))
    except UsageError as error:
        raise UsageError(f"{path} is damaged: its manifest does not hold: {error}") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()]
        raise UsageError(f"{path} is damaged: its manifest does not hold: {'; '.join(wrong)}") from error


@cache
def _model() -> Any:
    """The manifest's schema, taken from the fields of `DistilledSet`: all needed, none besides."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(DistilledSet)
    kept: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(DistilledSet) if f.name not in NO_FACTS}
    return create_model("Manifest", __config__=ConfigDict(extra="forbid"), **kept)
