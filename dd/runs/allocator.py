"""The C allocator's thresholds, which decide a factor of two in CPU training.

glibc returns every block above its mmap threshold to the kernel when it is freed, so each activation of a large batch
is paged in again at every step.  With the threshold raised they are kept and reused.
"""

import ctypes
import functools
import sys

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BELOW = 1 << 30


@functools.cache
def keep_large_buffers() -> bool:
    """Raise glibc's thresholds for this process, once; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
