"""Keep freed memory in the process, so that programs on a CPU do not wait for the operating system.

XLA's CPU backend takes the temporary memory of a program from `malloc` at every call, and frees it at the end. The
default allocator of Linux (glibc) gives large blocks back to the system at once. At the next call the system fills
every page with zeros again, with one page fault for each 4 KB. This was 40 % of the time of a training step of a TopK
dictionary and of a decomposition (`benchmarks/README.md`).

    keep_freed_memory()        # before the first program runs; the commands of `jax-interp` do it
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h of glibc
LARGEST_INT = 2**31 - 1


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the allocator to keep memory that is freed, up to 2 GB at the end of the heap, and to use one heap.

    This holds for the whole process and cannot be undone, so it is for programs and not for libraries. The memory of
    the process stays at its peak. Call it before JAX starts its threads, because a thread keeps the heap that it has.

    Args:
      environment: the environment variables. If they already set up the allocator (`GLIBC_TUNABLES`, `MALLOC_...`),
        nothing is changed.

    Returns:
      Whether it was done. False: also on systems without glibc.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in environment)
    if chosen or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_ARENA_MAX, 1))
    return [mallopt(name, value) for name, value in settings] == [1, 1, 1]
