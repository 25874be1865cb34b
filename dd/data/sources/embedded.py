"""The embedded data set: a small part of Fashion-MNIST that needs no download."""

import gzip
import hashlib
import tomllib
from importlib.resources import files

from dd.data.sources.catalogue import EMBEDDED, FASHION_CLASSES
from dd.data.sources.content import Arrays
from dd.data.sources.idx import idx_arrays, parse_idx
from dd.errors import RunError

EMBEDDED_FOLDER = files("dd.assets").joinpath(EMBEDDED)
_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def read_embedded() -> Arrays:
    """Images and labels of `fashion-mini`, in the order of the original files.

    Raises:
        RunError: a file is damaged: its checksum is not the one published with this version.
    """
    checksums = tomllib.loads(EMBEDDED_FOLDER.joinpath("checksums.toml").read_text(encoding="utf-8"))
    tensors = []
    for stem in _FILES:
        name = f"{stem}-ubyte.gz"
        data = EMBEDDED_FOLDER.joinpath(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != checksums[name]["file"]:
            path = EMBEDDED_FOLDER / name
            raise RunError(f"the embedded file {path} is damaged: its SHA-256 differs; install dd-workbench again")
        tensors.append(parse_idx(gzip.decompress(data), name))
    return idx_arrays(tensors, FASHION_CLASSES, str(EMBEDDED_FOLDER))


def embedded_size() -> int:
    """Size of the embedded files in bytes."""
    return sum(len(EMBEDDED_FOLDER.joinpath(f"{stem}-ubyte.gz").read_bytes()) for stem in _FILES)
