"""Checks of settings against the world: names of data sets and protocols, files, devices, networks."""

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

_LARGEST = 1 << 20  # bytes of a file that people write
_DEVICE = re.compile(r"auto|cpu|mps|cuda(?::\d+)?")


def check_dataset(name: str) -> None:
    """Raise `UsageError` unless `name` is a data set's, or names a user's own by a path that exists."""
    from dd.data.sources import require_known

    require_known(name)


def size(bare: Mapping[str, Any]) -> None:
    """Raise `UsageError` where both `ipc` and `fraction` are given."""
    if bare["ipc"] is not None and bare["fraction"] is not None:
        ipc = size_name(bare["ipc"], None).removeprefix("ipc")
        raise UsageError(f"ipc={ipc} and fraction={bare['fraction']} exclude one another; give one")


def no_clash(method: type, fields: Iterable[str], reserved: Iterable[str]) -> None:
    """Raise `UsageError` where a method's field has the name of a key of every run."""
    if clash := sorted(set(fields) & {*reserved, "data", "student", "eval"}):
        raise UsageError(f"{method.__name__} has fields named like keys of every run: {', '.join(clash)}; rename them")


def instance(cls: "type[Method]", name: str) -> "Method":
    """The method with its defaults, or `UsageError` where a field has none."""
    try:
        return cls()
    except TypeError as error:
        raise UsageError(f"method {name!r}: every field needs a default ({error})") from error


def protocol(name: Any) -> "Protocol":
    """The evaluation protocol of that name, or `UsageError`."""
    from dd.evaluation.protocols import PROTOCOLS

    if name not in PROTOCOLS:
        raise unknown("eval.protocol", str(name), PROTOCOLS)
    return PROTOCOLS[name]


def student(spec: "NetworkSpec") -> None:
    """Raise `UsageError` for an architecture that does not exist, as far as that shows without the images' size."""
    from dd.networks import resolve_network

    # a size that no depth within range is too much for: the real one is checked when the images are there
    large = 256 if spec.depth is None else 2**16
    resolve_network(dataclasses.replace(spec), large)


def device(asked: str) -> str:
    """The device a run uses: itself, or for "auto" a CUDA device where there is one, else the CPU.

    Apple's "mps" is taken only when it is asked for by name.

    Raises:
        UsageError: not a device, or not one of this machine.
    """
    if not _DEVICE.fullmatch(asked):
        raise UsageError(f"device={asked!r} is not a device; use auto, cpu, cuda, cuda:N or mps")
    if asked == "cpu":
        return asked
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda" if cuda else "cpu"
    if asked == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps is not available here; device=auto takes the best there is")
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= cuda:
        seen = f"{cuda} CUDA device{'s' * (cuda != 1)} found" if cuda else "no CUDA device found"
        raise UsageError(f"device={asked}: {seen}; device=auto takes the best there is")
    return asked


def begins(init: str) -> None:
    """Raise `UsageError` unless `init` names a file, or the folder of a run with a set in it."""
    from dd.sets.formats import set_file

    path = set_file(init, "init")
    if readable("init", init).is_dir() and not os.path.exists(path):
        raise UsageError(f"init={init} is a folder without a set; name that of a run, or a set's file")
    existing(path, f"init={init}")


def small_text(key: str, path: Path) -> str:
    """The text of a file that people write, or `UsageError` where it is no file of its sort."""
    existing(path, f"{key}={path}")
    if path.stat().st_size > _LARGEST:
        raise UsageError(f"{key}={path}: {readable_size(path.stat().st_size)} are too much for a {key}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{key}={path}: not a {key}: {error}") from error


def readable(key: str, path: str) -> Path:
    """The path of an existing file or folder, `~` expanded, or `UsageError`."""
    return existing(user_path(path, key), f"{key}={path}")
