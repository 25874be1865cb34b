"""The functions of `block.c`, which a C compiler makes in a second when they are first asked for."""

import ctypes
import functools
import logging
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from dd.io.atomic import atomic_path
from dd.io.hashing import digest
from dd.io.home import home

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("block.c")
COMPILERS = ("gcc", "cc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
TYPES = {torch.float32: "float", torch.float64: "double"}
_FEW = 1 << 14  # values that one thread goes over sooner than another one wakes up


def takes(*tensors: Tensor) -> bool:
    """Whether the functions exist here and can be called with these tensors: in float32 or float64, on a CPU."""
    kinds = {(tensor.dtype, tensor.device.type) for tensor in tensors}
    return len(kinds) == 1 and kinds <= {(dtype, "cpu") for dtype in TYPES} and library() is not None


def call(name: str, x: Tensor, *arguments: Tensor | float) -> None:
    """Call a function for maps x (n, c, h, w).

    Args:
        name: the function.
        x: the maps; only type and shape count.
        arguments: those after the width; tensors must be contiguous.
    """
    functions = library()
    assert functions is not None
    n, c, h, w = x.shape
    threads = torch.get_num_threads() if x.numel() >= _FEW else 1
    function = getattr(functions, f"{name}_{TYPES[x.dtype]}")
    sizes = (ctypes.c_long(size) for size in (n * c, c, h, w))
    function(threads, *sizes, *(_as_c(argument) for argument in arguments))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None without a C compiler that can make them."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_made(compiler)))  # which shares the threads of torch's OpenMP, because that is loaded
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.info("closed forms by PyTorch, which is slower: %s cannot make them: %s", compiler, said.strip()[-200:])
        return None


def _made(compiler: str) -> Path:
    """The file of the functions, made by `compiler` for this processor, or found in the folder that runs share.

    Raises:
        OSError: the file cannot be written.
        subprocess.CalledProcessError: the compiler failed.
    """
    key = digest([SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, _processor()])
    file = home() / "native" / f"block-{key}.so"
    if not file.exists():
        with atomic_path(file) as unfinished:
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(unfinished), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return file


def _processor() -> list[str]:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return [line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags", "Features"))]


def _as_c(argument: Tensor | float) -> ctypes.c_void_p | ctypes.c_double:
    if not isinstance(argument, Tensor):
        return ctypes.c_double(argument)
    assert argument.is_contiguous()
    return ctypes.c_void_p(argument.data_ptr())
