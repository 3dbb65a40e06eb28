"""The C allocator's settings for a process that frees and takes the same large blocks all the time."""

import ctypes

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory instead of returning it after every layer of a network.

    Otherwise each activation is mapped and zeroed anew: a third of the time of a small network on a CPU
    (`python -m tests.bench.allocator`). Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
