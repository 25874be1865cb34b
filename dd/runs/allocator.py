"""Thresholds of the C allocator, which change the speed of CPU training by a factor of two.

glibc returns every freed block above its mmap threshold to the kernel, so the activations of a large batch are paged in
again at every step.  With a higher threshold they are kept and reused.
"""

import ctypes
import functools
import sys

# from <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BELOW = 1 << 30


@functools.cache
def keep_large_buffers() -> bool:
    """Raise glibc's thresholds for this process; return False if the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
