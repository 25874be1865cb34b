"""Files of `torch.save`: inspected without running anything, then read by `torch.load(weights_only=True)`.

The inspection is a dry run of the pickle with inert stand-ins for all globals. It finds the required globals and the
sizes of the tensors before torch allocates memory that a header merely declares.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dd.errors import UsageError, in_one_line, printable
from dd.exchange import zips
from dd.exchange.tree import Tree
from dd.sizes import readable_size

_MAGIC = 0x1950A86A20F9469CFC6C  # the magic of files of torch before 1.6
_EXPANDED = 64 << 20  # bytes that tensors may exceed their file by, for example by expanding a single value
_DEPTH, _NODES = 8, 200_000  # maximum depth of nesting, and maximum number of values
_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_REBUILT = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
    "_codecs.encode",
)
_DTYPES = re.compile(r"[<>=|]?[biuf][1248]")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_SAFE_DTYPES = [
    type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
]
_FAILURES = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
)


class _Refused(Exception):
    """The reason for refusing a pickle."""


def read(path: Path) -> Tree:
    """Read a file of `torch.save`: tensors on the CPU, detached from their graph.

    Raises:
        UsageError: the file needs a global that could run code, declares more data than it has, or is damaged.
    """
    try:
        _look(path)
        with torch.serialization.safe_globals(_allowed()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return _Nodes(path.stat().st_size).plain(found)
    except _Refused as error:
        raise UsageError(f"{path} is refused: {error}; nothing in it was run") from error
    except _FAILURES as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(printable(str(error)) or error)}") from error


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the functions that rebuild numpy scalars and arrays, under their old and new names."""
    rebuilt: dict[str, Any] = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
    both = [(function, f"{module}.{name}") for module in _NUMPY for name, function in rebuilt.items()]
    return [*both, np.ndarray, np.dtype, *_SAFE_DTYPES]


def _look(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            _look_zipped(path)
            return
        file.seek(0)
        first = _Dry(file).load()
        if first != _MAGIC:
            raise _Refused("it is a pickle, but not one of torch.save (whose own files are tensors and plain values)")
        for _ in range(2):
            _Dry(file).load()  # format version, sizes of integers
        dry = _Dry(file)
        dry.load()
        _require(sum(dry.storages.values()), size)


def _look_zipped(path: Path) -> None:
    sizes = zips.members(path, packed=False)
    pickled = [name for name in sizes if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise _Refused(f"it holds {len(pickled)} pickles, and a file of torch.save one")
    top = pickled[0].removesuffix("data.pkl")
    with zipfile.ZipFile(path) as file:
        content = file.read(pickled[0])
    dry = _Dry(io.BytesIO(content))
    dry.load()
    for key, declared in dry.storages.items():
        there = sizes.get(f"{top}data/{key}")
        if there is None:
            raise _Refused(f"it lacks the numbers of tensor {key[:20]!r}")
        _require(declared, there)


def _require(declared: int, there: int) -> None:
    if declared > there:
        raise _Refused(f"it declares tensors of {readable_size(declared)}, and holds {readable_size(there)}")


class _Note:
    """A stand-in for a global: it does nothing, whatever a pickle does with it."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __call__(self, *args: object) -> "_Note":
        return _Note(self.name)

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""

    def append(self, item: object) -> None:
        """Nothing is kept."""

    def extend(self, items: object) -> None:
        """Nothing is kept."""

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing is kept."""


class _Dry(pickle.Unpickler):
    """Reads one pickle of a file, with stand-ins for globals.

    Attributes:
        storages: bytes declared, by key.
    """

    def __init__(self, file: IO[bytes]) -> None:
        start = file.tell()
        _require_memo(file)
        file.seek(start)
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an allowed global."""
        return _stand_in(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return the stand-in for a storage, after checking its size."""
        said = pid[:5] if isinstance(pid, tuple) and len(pid) >= 5 else ("", None, None, None, None)
        word, kind, key, _, count = said
        if (
            word != "storage"
            or not isinstance(kind, _Inert)
            or kind.name not in _STORAGES
            or not isinstance(count, int)
        ):
            raise _Refused("a tensor in it is described in an unknown way")
        width = _STORAGES[kind.name].itemsize
        if count < 0:
            raise _Refused("a tensor in it has a negative size")
        self.storages[str(key)] = max(count * width, self.storages.get(str(key), 0))
        return _Note("storage")


class _Inert(_Note):
    """A stand-in for a global that may occur in a pickle, but must not be called."""

    def __call__(self, *args: object) -> _Note:
        raise _Refused(f"it calls {self.name}")


class _Typed(_Note):
    """A stand-in for a numpy dtype."""

    def __call__(self, *args: object) -> _Note:
        if not args or not isinstance(args[0], str) or not _DTYPES.fullmatch(args[0]):
            raise _Refused(f"it holds numpy's {str(args[:1])[:40]}, where numbers are expected")
        return _Typed(args[0])

    def __setstate__(self, state: object) -> None:
        """Accept the byte order and nothing else."""
        if not isinstance(state, tuple) or len(state) != 8 or state[2:] != (None, None, None, -1, -1, 0):
            raise _Refused("it holds a numpy type of its own making")


class _Array(_Note):
    """A stand-in for a numpy array, which must start empty."""

    def __call__(self, *args: object) -> _Note:
        if len(args) != 3 or args[1] != (0,):
            raise _Refused("it makes a numpy array of a size that it does not fill")
        return _Note(self.name)


def _stand_in(module: str, name: str) -> _Note:
    named = f"{module}.{name}"
    if module == "torch" and name in _STORAGES:
        return _Inert(name)
    if named == "numpy.dtype":
        return _Typed(named)
    if named == "numpy.ndarray":
        return _Inert(named)
    if module in _NUMPY and name == "_reconstruct":
        return _Array(named)
    if module in _NUMPY and name == "scalar":
        return _Note(named)
    if named in _REBUILT:
        return _Note(named)
    raise _Refused(f"it needs {printable(named)[:100]}, which is no tensor and no number, and could run code")


def _require_memo(file: IO[bytes]) -> None:
    """Refuse memo indices beyond the number of entries, which would fill memory while the pickle is read."""
    for places, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("BINPUT", "LONG_BINPUT", "PUT") and isinstance(argument, int) and argument > places + 256:
            raise _Refused("its memo is not one that programs write")


class _Nodes:
    """Converts contents to plain values, and limits their number."""

    def __init__(self, size: int) -> None:
        self.left, self.bytes = _NODES, max(size, _EXPANDED)

    def plain(self, value: Any, depth: int = 0) -> Tree:
        """Return lists and dicts of tensors and plain values.

        Raises:
            _Refused: other values, or too many of them.
        """
        self.left -= 1
        if self.left < 0 or depth > _DEPTH:
            raise _Refused("its lists are nested as no program writes them")
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list | tuple):
            return [self.plain(one, depth + 1) for one in value]
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise _Refused("a key in it is neither text nor number")
            return {key: self.plain(one, depth + 1) for key, one in value.items()}
        if value is None or isinstance(value, str | bytes | bool | int | float):
            return value
        raise _Refused(f"it holds a {type(value).__name__}, where tensors and numbers are expected")

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise _Refused("a tensor in it is sparse, quantized or without values")
        size = tensor.numel() * tensor.element_size()
        if size > self.bytes:
            raise _Refused(f"a tensor in it spreads over {readable_size(size)}, more than is stored")
        return tensor.detach()
