"""How many cores a process may use."""

import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores together that a container has in each period


def usable_cores() -> int:
    """The cores that this process may use, at least 1: fewer than the machine has where its affinity, set by a batch
    system for example, or its container's quota is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    with suppress(OSError, ValueError):  # no Linux, no cgroup of the second version, or "max"
        quota, period = map(int, QUOTA.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)
