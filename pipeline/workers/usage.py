"""What an actor takes of its machine, sampled by itself now and then, for whoever follows a run."""

import json
import os
import resource
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

SECONDS_BETWEEN_SAMPLES = 15.0
SECONDS_OF_SILENCE = 1800.0  # after which an actor is taken for gone: a unit may take minutes


@dataclass(frozen=True)
class Usage:
    """What one process uses. GPU values are None without a GPU, or where its use is unknown."""

    process: str
    unix: float
    cpu_seconds: float
    memory_bytes: int
    gpu_memory_bytes: int | None = None
    gpu_percent: float | None = None

    def text(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def parse(cls, text: str) -> "Usage":
        return cls(**json.loads(text))


def usage(device: str) -> Usage:
    """What this process has used by now; a GPU's share of time is that of all who use it."""
    times = os.times()
    memory: int | None = None
    percent: float | None = None
    if device.startswith("cuda"):
        memory = torch.cuda.memory_reserved()
        with suppress(Exception):  # NVIDIA's library, of which torch needs Python's bindings, may not be there
            percent = float(torch.cuda.utilization())
    process = f"{socket.gethostname()}:{os.getpid()}"
    return Usage(process, time.time(), times.user + times.system, resident_bytes(), memory, percent)


def resident_bytes() -> int:
    """Memory that the process holds now; elsewhere than on Linux, the most that it ever held."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class UsageMeter:
    """An actor's own samples, not more often than every SECONDS_BETWEEN_SAMPLES."""

    def __init__(self, device: str) -> None:
        self.device, self.due = device, 0.0

    def text(self) -> str:
        """A sample, if one is due; empty otherwise, and where the system tells nothing."""
        if time.monotonic() < self.due:
            return ""
        self.due = time.monotonic() + SECONDS_BETWEEN_SAMPLES
        with suppress(Exception):  # no vote waits for it
            return usage(self.device).text()
        return ""


class ActorsUsage:
    """What a run's actors take together, by their last samples."""

    def __init__(self) -> None:
        self.samples: dict[str, tuple[Usage | None, Usage]] = {}  # of each process the one before, and the last

    def add(self, text: str) -> None:
        sample = Usage.parse(text)
        _, before = self.samples.get(sample.process, (None, None))
        self.samples[sample.process] = before, sample

    def metrics(self, *, now_unix: float) -> Mapping[str, float]:
        """Under MLflow's section of system metrics; cores are those at work between an actor's last two samples."""
        known = [pair for pair in self.samples.values() if now_unix - pair[1].unix < SECONDS_OF_SILENCE]
        if not known:
            return {}
        last = [sample for _, sample in known]
        values: dict[str, float] = {
            "system/actors": len(last),
            "system/memory_gb": sum(sample.memory_bytes for sample in last) / 1e9,
        }
        if cores := [cores_between(before, sample) for before, sample in known if before]:
            values["system/cpu_cores"] = sum(cores)
        if reserved := [sample.gpu_memory_bytes for sample in last if sample.gpu_memory_bytes is not None]:
            values["system/gpu_memory_gb"] = sum(reserved) / 1e9
        if percents := [sample.gpu_percent for sample in last if sample.gpu_percent is not None]:
            values["system/gpu_percent"] = sum(percents) / len(percents)
        return values


def cores_between(before: Usage, after: Usage) -> float:
    return (after.cpu_seconds - before.cpu_seconds) / max(1e-9, after.unix - before.unix)
