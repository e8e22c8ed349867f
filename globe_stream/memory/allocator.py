"""Keep the C allocator from hoarding freed blocks, so that resident memory follows use.

glibc raises the size from which blocks are mapped separately each time a mapped block is freed;
later blocks then come from a heap that fragments and rarely shrinks. Fixing the threshold
returns every large block to the system as soon as it is freed.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 1 << 20
COMPILED_KERNELS = 16
"""More than the products of an epoch, so that none is compiled twice in it."""


def return_freed_memory() -> None:
    """Make frees of blocks of 1 MiB and more reach the system at once (glibc only).

    Torch is asked for huge pages, which make touching fresh blocks many times cheaper, and
    oneDNN to keep few of the kernels that it compiles for every new shape of a product, about a
    MiB each; both read the wish when they are used for the first time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_KERNELS))
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)
    libc.mallopt(_M_ARENA_MAX, 2)


def trim() -> None:
    """Return free heap pages to the system (glibc only)."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
