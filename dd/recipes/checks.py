"""Checks of settings that need more than their type: names of data sets and protocols, files, devices, networks."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError, unknown
from dd.io import existing, user_path
from dd.recipes.tables import size_name
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.engine.method import Method
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec

_LARGEST = 1 << 20  # maximum size in bytes of a hand-written file
_DEVICE = re.compile(r"auto|cpu|mps|cuda(?::\d+)?")


def check_dataset(name: str) -> None:
    """Raise `UsageError` unless `name` is a known data set or an existing path to the user's own data."""
    from dd.data.sources import require_known

    require_known(name)


def size(bare: Mapping[str, Any]) -> None:
    """Raise `UsageError` if both `ipc` and `fraction` are given."""
    if bare["ipc"] is not None and bare["fraction"] is not None:
        ipc = size_name(bare["ipc"], None).removeprefix("ipc")
        raise UsageError(f"ipc={ipc} and fraction={bare['fraction']} are mutually exclusive; give one")


def no_clash(method: type, fields: Iterable[str], reserved: Iterable[str]) -> None:
    """Raise `UsageError` if a field of the method has the name of a key that every run has."""
    if clash := sorted(set(fields) & {*reserved, "data", "student", "eval"}):
        raise UsageError(f"{method.__name__} has fields named like keys of every run: {', '.join(clash)}; rename them")


def instance(cls: "type[Method]", name: str) -> "Method":
    """Return the method with its defaults, or raise `UsageError` if a field has none."""
    try:
        return cls()
    except TypeError as error:
        raise UsageError(f"method {name!r}: every field needs a default ({error})") from error


def protocol(name: Any) -> "Protocol":
    """Return the evaluation protocol with that name, or raise `UsageError`."""
    from dd.evaluation.protocols import PROTOCOLS

    if name not in PROTOCOLS:
        raise unknown("eval.protocol", str(name), PROTOCOLS)
    return PROTOCOLS[name]


def regimes(asked: "Protocol", network: "NetworkSpec") -> None:
    """Raise `UsageError` for an unknown suite, a coreset of no selection method, or an impossible teacher.

    Teachers count only if some labels are soft.  Otherwise these would fail only after the set is made and its students
    are trained.
    """
    from dd.evaluation.suites import suite_named
    from dd.training.teacher_names import Untrained, teacher_source

    if asked.suite is not None:
        suite_named(asked.suite)
    for name in asked.coreset:
        coreset(name)
    if set(asked.labels) - {"hard"}:
        for name in asked.teachers:
            source = teacher_source(name, network)
            if isinstance(source, Untrained):
                student(source.spec)


def coreset(name: str) -> None:
    """Raise `UsageError` unless `name` is a selection method."""
    from dd.engine import registry
    from dd.engine.selection import Selection

    if not registry.is_code(name) and name not in registry.names():
        raise unknown("eval.coreset", name, registry.names())
    if not issubclass(registry.get(name), Selection):
        raise UsageError(f"eval.coreset={name} is no selection method, see `dd methods`; random is one")


def student(spec: "NetworkSpec") -> None:
    """Raise `UsageError` for an impossible architecture, as far as this is known without the image size."""
    from dd.networks import resolve_network

    # large enough for every valid depth; the actual size is checked once the images are open
    large = 256 if spec.depth is None else 2**16
    resolve_network(dataclasses.replace(spec), large)


def device_name(asked: str) -> None:
    """Raise `UsageError` unless this is "auto" or the name of a device, which need not be on this machine."""
    if not _DEVICE.fullmatch(asked):
        raise UsageError(f"device={asked!r} is not a device; use auto, cpu, cuda, cuda:N or mps")


def device(asked: str) -> str:
    """Return the device a run uses: `asked`, or for "auto" a CUDA device if available, else the CPU.

    Apple's "mps" is used only if requested by name.

    Raises:
        UsageError: the device does not exist, or not on this machine.
    """
    device_name(asked)
    if asked == "cpu":
        return asked
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda" if cuda else "cpu"
    if asked == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps is not available here; device=auto uses the best one available")
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= cuda:
        seen = f"{cuda} CUDA device{'s' * (cuda != 1)} found" if cuda else "no CUDA device found"
        raise UsageError(f"device={asked}: {seen}; device=auto uses the best one available")
    return asked


def begins(init: str) -> None:
    """Raise `UsageError` unless `init` is a file, a run folder that contains a set, or a released set."""
    from dd.released.pull import is_released, similar
    from dd.sets.formats import set_file

    if is_released(init):
        return  # it is fetched, and verified, when its digest is taken
    path = set_file(init, "init")
    if near := similar(init):
        raise UsageError(f"init={init}: no such file, and no released set of that name{near}")
    if readable("init", init).is_dir() and not os.path.exists(path):
        raise UsageError(f"init={init} is a folder without a set; name that of a run, or a set's file")
    existing(path, f"init={init}")


def small_text(key: str, path: Path) -> str:
    """Return the text of a hand-written file, or raise `UsageError` if it is too large or not UTF-8."""
    existing(path, f"{key}={path}")
    if path.stat().st_size > _LARGEST:
        raise UsageError(f"{key}={path}: {readable_size(path.stat().st_size)} is too large for a {key}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{key}={path}: not a {key}: {why}") from error


def readable(key: str, path: str) -> Path:
    """Return the path of an existing file or folder with `~` expanded, or raise `UsageError`."""
    return existing(user_path(path, key), f"{key}={path}")
