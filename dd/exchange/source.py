"""Files to import, opened lazily and only once."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from dd.errors import UsageError
from dd.exchange import arrays, messages, pickles, zips
from dd.exchange.tree import Tree
from dd.io import existing

Container = Literal["torch", "npz", "npy", "msgpack", "parquet", "image", "folder", "other"]
"""The type of a file by its first bytes, regardless of its name."""

TENSORS: tuple[Container, ...] = ("torch", "npz", "npy", "msgpack")
"""Files of tensors, which `ForeignFiles.content` reads."""
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM")


class ForeignFiles:
    """The files that a user asks to import.

    Attributes:
        paths: as given by the user, in this order; each is a regular file or a folder.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths` as `dd.io.user_path` gives them.

        Raises:
            UsageError: a path does not exist, or is a pipe, a socket or a device.
        """
        if not paths:
            raise UsageError("name the files to be imported: dd import PATH dataset=NAME")
        self.paths = tuple(existing(path, str(path)) for path in paths)
        for path in self.paths:
            if path.suffix == ".safetensors":
                raise UsageError(
                    f"{path}: safetensors is the form of dd's own sets, which need no import: dd eval {path}"
                )
        self._found: dict[Path, Tree] = {}

    def __repr__(self) -> str:
        return f"<ForeignFiles {', '.join(map(str, self.paths))}>"

    @cached_property
    def folder(self) -> Path | None:
        """The folder, if it is the only path; else None."""
        return self.paths[0] if len(self.paths) == 1 and os.path.isdir(self.paths[0]) else None

    def container(self, path: Path) -> Container:
        """Tell what a file is, by its first bytes."""
        return container(path)

    def content(self, path: Path) -> Tree:
        """Read a file of tensors (`torch`, `npz`, `npy`, `msgpack`) once, without running anything in it.

        Raises:
            UsageError: the file is damaged, could run code, or declares more data than it has; the message names it.
        """
        if path not in self._found:
            self._found[path] = _read(path)
        return self._found[path]


def container(path: Path) -> Container:
    """Tell what a file is, by its first bytes."""
    if os.path.isdir(path):
        return "folder"
    with path.open("rb") as file:
        begin = file.read(256)
    if begin.startswith(b"PK\x03\x04"):
        return _zipped(path)
    if begin.startswith(b"\x93NUMPY"):
        return "npy"
    if begin.startswith(b"PAR1"):
        return "parquet"
    if begin.startswith(_IMAGES) or (begin.startswith(b"RIFF") and begin[8:12] == b"WEBP"):
        return "image"
    if begin.startswith(b"\x80") and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"  # or another pickle, which the reader reports
    # a map with string keys: msgpack, a checkpoint of flax
    if re.match(rb"[\x81-\x8f\xde\xdf]", begin) and re.match(
        rb"(?:[\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", begin, re.DOTALL
    ):
        return "msgpack"
    return "other"


def _zipped(path: Path) -> Container:
    names = zips.names(path)
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "other"


def _read(path: Path) -> Tree:
    kind = container(path)
    if kind == "torch":
        return pickles.read(path)
    if kind == "npz":
        return arrays.read_npz_tree(path)
    if kind == "npy":
        return arrays.read_npy(path)
    if kind == "msgpack":
        return messages.read(path)
    raise UsageError(f"{path} is no file of tensors: neither torch's .pt, nor .npz, .npy or msgpack")
