"""Memory that is freed stays with the process.

A training step, like a batch of an encoder, allocates and frees the same large tensors again and again. By
default glibc hands each of them back to the system at once, and every page of the next one is a page fault.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep_pages() -> bool:
    """Tell glibc's malloc to keep what is freed, up to 1 GiB apiece; False where there is no glibc.

    The process then holds on to the most that it ever used.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  (musl has none)
        return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGE) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
