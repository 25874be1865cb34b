"""The embedded data set: a small part of Fashion-MNIST that needs no download."""

import gzip
import hashlib
import tomllib
from importlib.resources import files

from dd.data import _idx
from dd.data._catalogue import EMBEDDED, FASHION_CLASSES
from dd.data._content import Arrays
from dd.errors import RunError

FOLDER = files("dd.assets").joinpath(EMBEDDED)
_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def read() -> Arrays:
    """Images and labels of `fashion-mini`, in the order of the original files.

    Raises:
        RunError: a file is not the one that was published with this version.
    """
    checksums = tomllib.loads(FOLDER.joinpath("checksums.toml").read_text(encoding="utf-8"))
    tensors = []
    for stem in _FILES:
        name = f"{stem}-ubyte.gz"
        data = FOLDER.joinpath(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != checksums[name]["file"]:
            raise RunError(
                f"the embedded file {FOLDER / name} is damaged: its SHA-256 differs; install dd-workbench again"
            )
        tensors.append(_idx.parse(gzip.decompress(data), name))
    return _idx.arrays(tensors, FASHION_CLASSES, str(FOLDER))


def size() -> int:
    """Bytes of the embedded files."""
    return sum(len(FOLDER.joinpath(f"{stem}-ubyte.gz").read_bytes()) for stem in _FILES)
