"""Fetch released sets by name: `pull("dm/fashion-mini-ipc10")`, `pull("hf:USER/NAME")`.

Each pulled set has a folder in `$DD_HOME/released` with its labels and, written last, `set.safetensors`. For formats
other than ours, `files` has the original files.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dd.errors import RunError, UsageError, close_matches, in_one_line, nearest, printable
from dd.exchange.draft import Asked
from dd.io import atomic_path, digest, home, locked, writable, write_json
from dd.io.typed import typed
from dd.labels import LabelStore
from dd.labels.store import KIND
from dd.released.fetch import Measured, fetch, require_available, take
from dd.released.hub import PREFIX, HubFile, HubListing, HubPlace, fetch_from_hub, hub_place, listing
from dd.released.index import known_set, known_sets
from dd.released.presets import labelled, preset
from dd.released.record import NAME, Released
from dd.runs import RunFolder
from dd.sets import DistilledSet, load, save
from dd.sets.formats import set_file
from dd.sizes import readable_size

log = logging.getLogger(__name__)

_WAY_OUT = "set DD_HOME to a folder that can be written to"
_COMMIT = re.compile("[0-9a-f]{40}")
_LABELS = re.compile(r"labels-\d{5}-of-\d{5}\.safetensors")
_OURS = "set.safetensors"


@dataclass(frozen=True)
class Pulled:
    """A released set on this machine.

    Attributes:
        path: file of the set, next to its labels.
        record: record of the set; None for a place on the Hub without a record.
        measured: size and hash of files without a published checksum; empty if the set had been pulled before.
        remarks: remarks for users of the set.
    """

    path: Path
    record: Released | None = None
    measured: tuple[Measured, ...] = ()
    remarks: tuple[str, ...] = ()


def is_released(text: str) -> bool:
    """Return whether a text names a released set and not an existing local path."""
    if text.startswith(PREFIX):
        return True
    return NAME.fullmatch(text) is not None and not os.path.exists(text) and text in known_sets()


def file_of(text: str, key: str) -> Path:
    """Return the file of a set that a setting names: by that file, by the folder of its run, or as a released set.

    Args:
        text: a path, or the name of a released set, which is fetched if it is not on this machine.
        key: the setting, for messages.

    Raises:
        UsageError: the text is no path, or the released set needs a further option.
        RunError: a released set cannot be fetched.
    """
    return pull(text).path if is_released(text) else set_file(text, key)


def similar(text: str) -> str:
    """Return words that name released sets with similar names; "" if there are none, or a file or folder is there."""
    if os.path.exists(text) or not NAME.fullmatch(text):
        return ""
    near = close_matches(text, known_sets())
    return nearest(text, near) if near else ""


def no_set_at(path: Path, text: str = "") -> UsageError:
    """Return the error for a set that is not there, with the released sets whose names are similar to `text`."""
    if near := similar(text):
        return UsageError(f"no set at {path}, and no released set {text!r}{near}")
    return UsageError(
        f"no set at {path}; `dd run` writes one into its folder under ./runs, and `dd sets` lists released ones"
    )


def pull(
    text: str, said: Mapping[str, Any] | None = None, *, trust: bool = False, by_hand: Sequence[Path] = ()
) -> Pulled:
    """Return the set of a name in our format; fetch and verify it if necessary.

    Args:
        text: the name of a record, or "hf:USER/NAME[@REVISION][/PATH]".
        said: keys of `dd import` for facts that the files omit or state wrongly; they override the record.
        trust: whether to accept files without a published checksum.
        by_hand: the files, if the user fetched them.

    Raises:
        UsageError: there is no such set, or a further option is needed.
        RunError: the set cannot be fetched, or the disk is full.
    """
    given = {key: value for key, value in (said or {}).items() if value is not None}
    try:
        typed(Asked, given, "")  # before anything is fetched
        if text.startswith(PREFIX):
            return _of_hub(hub_place(text), given)
        record = known_set(text)
        if given and record.format == "dd":
            keys = ", ".join(f"{key}=" for key in given)
            raise UsageError(f"{text} is in dd's own format, which needs no options: leave out {keys}")
        return _of_record(record, given, trust, by_hand)
    except (ConnectionError, FileNotFoundError) as error:
        raise RunError(f"{text} could not be fetched ({in_one_line(error)}); the same command resumes") from error


def copied(pulled: Pulled, out: Path, *, force: bool = False) -> Path:
    """Copy a pulled set to a folder, as `set.safetensors` next to its labels.

    Raises:
        UsageError: the folder has another set and `force` is False, or is not writable.
        RunError: the disk is full.
    """
    target = RunFolder(out).set
    if out.suffix == target.suffix:
        raise UsageError(f"out={out} names a file; a set and its labels go into a folder: out={out.with_suffix('')}")
    if target.exists() and not force and target.read_bytes() != pulled.path.read_bytes():
        raise UsageError(
            f"{target} is another set; choose another folder with out=FOLDER, or replace it with force=true"
        )
    writable(out, "choose another folder with out=FOLDER")
    save(load(pulled.path), target)
    return target


def _of_record(record: Released, said: Mapping[str, Any], trust: bool, by_hand: Sequence[Path]) -> Pulled:
    here = home() / "released" / record.name
    folder = here / digest([record.key(), _plain(said)])
    files = here / digest([record.key(), {}]) / "files"  # the same files for any options, so that they are fetched once
    target = RunFolder(folder).set
    if target.is_file() and not by_hand:
        return Pulled(target, record)
    if not by_hand:
        require_available(record)
    for line in _terms(record):
        log.info("%s", line)
    writable(folder, _WAY_OUT)
    with locked(folder / ".lock", record.name):
        if target.is_file() and not by_hand:
            return Pulled(target, record)
        came = take(record, by_hand, files) if by_hand else fetch(record, files, trust=trust)
        if record.format == "dd":
            try:
                _place(folder, [one.path for one in came])
            except UsageError:
                shutil.rmtree(files, ignore_errors=True)  # so that the next attempt fetches them again
                raise
        else:
            asked = {**_of_the_record(record), **said}
            paths = [one.path for one in came]
            # files in a record belong together, in this order; a whole repository is read as a folder
            together = paths if by_hand or record.files or len(paths) == 1 else [files]
            made, remarks = _imported(together, asked, record.name)
            save(made, target)
            return Pulled(target, record, _unstated(record, came), remarks)
    return Pulled(target, record, _unstated(record, came))


def _of_hub(place: HubPlace, said: Mapping[str, Any]) -> Pulled:
    noted = home() / "released" / "hub" / f"{digest([str(place), _plain(said)])}.json"
    before = _before(noted)
    if before is not None and _COMMIT.fullmatch(place.revision):
        return Pulled(before)
    try:
        found = listing(place)
        return _kept(_from_listing(found, said), noted)
    except ConnectionError as error:
        if before is None:
            raise
        return Pulled(before, remarks=(f"{in_one_line(error)}; what was pulled before is used",))


def _from_listing(found: HubListing, said: Mapping[str, Any]) -> Pulled:
    place, ours = found.place, _own(found)
    extra = {} if ours else {key: value for key, value in preset(place.repo).items() if key not in said}
    asked = {} if ours else {**extra, **said}
    repo = found.place.repo.replace("/", "--")
    folder = home() / "released" / "hub" / repo / digest([place.revision, place.path, _plain(asked)])
    target = RunFolder(folder).set
    if target.is_file():
        return Pulled(target)
    files = ours or found.data
    size = sum(file.size for file in files)
    count = f"{len(files):,} file{'s' if len(files) > 1 else ''}"
    log.info("%s: %s, %s, at commit %s", place.repo, count, readable_size(size), place.revision[:12])
    writable(folder, _WAY_OUT)
    with locked(folder / ".lock", str(place)):
        if target.is_file():
            return Pulled(target)
        here = fetch_from_hub(found, files)
        if ours:
            _place(folder, list(here.values()))
            return Pulled(target)
        paths = list(here.values())
        source = paths if len(paths) == 1 else [_top(place, paths, list(here))]
        made, remarks = _imported(source, asked, str(place))
        save(made, target)
    return Pulled(target, remarks=(*(f"taken for {key}={value}" for key, value in extra.items()), *remarks))


def _own(found: HubListing) -> list[HubFile]:
    """Return the files of a set in our format in a listing; empty if there is none."""
    place = found.place
    if place.path.endswith(".safetensors"):
        names = [found.files[0]]
    else:
        own = found.named(_OURS)
        names = [own] if own else []
    if not names:
        return []
    folder = os.path.dirname(names[0].path)
    return [*names, *(file for file in found.files if _is_label(Path(file.path)) and _beside(file.path) == folder)]


def _is_label(path: Path) -> bool:
    """Return whether a file contains labels of views, packed or of one epoch."""
    return _LABELS.fullmatch(path.name) is not None or path.parent.name == KIND


def _beside(path: str) -> str:
    """Return the folder of the set to which a label file belongs."""
    folder = os.path.dirname(path)
    return os.path.dirname(folder) if os.path.basename(folder) == KIND else folder


def _place(folder: Path, files: Sequence[Path]) -> None:
    """Copy the files of a set in our format to a folder, `set.safetensors` last, so that it marks a complete folder."""
    labels = sorted(filter(_is_label, files))
    sets = [file for file in files if file not in labels]
    if len(sets) != 1 or sets[0].suffix != ".safetensors":
        raise UsageError(f"{', '.join(file.name for file in sets) or 'nothing'}: one set.safetensors was expected")
    made = load(sets[0])
    if made.views is not None:
        if not labels:
            raise UsageError("the set was released without the labels of its views, labels-00001-of-….safetensors")
        packed = [file for file in labels if _LABELS.fullmatch(file.name)]
        for file in labels:
            if file not in packed:
                _copy(file, folder / KIND / file.name)
        LabelStore(folder, made.views.spec, made.labels).unpack(packed)
        replace(made, path=RunFolder(folder).set).label_store()  # checks that the labels belong to the set
    _copy(sets[0], RunFolder(folder).set)
    shutil.rmtree(folder / "files", ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _imported(paths: Sequence[Path], asked: Mapping[str, Any], named: str) -> tuple[DistilledSet, tuple[str, ...]]:
    from dd.exchange.front import matched

    found = matched([str(path) for path in paths], asked)
    if len(found) > 1:
        entries = ", ".join(map(str, range(len(found))))
        raise UsageError(f"{named} holds {len(found)} sets; say which one: entry={entries}")
    made = labelled(found[0].set, str((found[0].set.protocol or {}).get("protocol", "")))
    return made, (found[0].remark,) if found[0].remark else ()


def _of_the_record(record: Released) -> dict[str, Any]:
    """Return the keys of `dd import` that a record sets."""
    texts = ("dataset", "value_space", "class_order", "augment", "protocol", "format")
    said: dict[str, Any] = {key: getattr(record, key) for key in texts if getattr(record, key)}
    return said | {key: getattr(record, key) for key in ("factor", "entry") if getattr(record, key) is not None}


def _terms(record: Released) -> list[str]:
    """Return what the user should read before the download starts."""
    size = "size not stated" if record.size is None else readable_size(record.size)
    lines = [f"{record.name}: {size}, licence {record.licence}; real data: licence {record.data_licence}"]
    lines += [f"made by {record.by}"] if record.by else []
    return [printable(line, keep="") for line in lines]


def _unstated(record: Released, came: Sequence[Measured]) -> tuple[Measured, ...]:
    return () if record.is_sealed else tuple(came)


def _top(place: HubPlace, paths: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the folder of a place in the Hub's cache."""
    root = str(paths[0]).removesuffix(names[0])
    return Path(root) / place.path


def _kept(pulled: Pulled, note: Path) -> Pulled:
    """Record the set of a place, for use when the Hub cannot be reached."""
    with contextlib.suppress(OSError, RunError):
        write_json(note, {"set": str(pulled.path.relative_to(home()))})
    return pulled


def _before(note: Path) -> Path | None:
    try:
        path = home() / str(json.loads(note.read_text(encoding="utf-8"))["set"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path.is_file() else None


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(said), default=str, sort_keys=True))
