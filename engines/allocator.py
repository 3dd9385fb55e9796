"""Keep freed memory in the process, which saves page faults.

A training step, like an encoder's batch, allocates and frees the same large tensors again and again. By
default glibc returns each of them to the system at once, so that every page of the next one faults.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep_pages() -> bool:
    """Tell glibc's malloc to keep freed blocks of up to 1 GiB. Returns False where there is no glibc.

    The process then stays at its peak memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  (musl has none)
        return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGE) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
