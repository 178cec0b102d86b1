"""Memory that a process has freed and will ask for again: kept, instead of given back to the kernel."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""
ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have malloc reuse what this process frees, of whatever size; return False where there is no glibc to be told so.

    Otherwise every tensor of a few MiB is mapped anew, and the kernel fills it with zeros page by page: a quarter of a training
    step's time on a CPU. The process keeps the most that it ever held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, ALL))
