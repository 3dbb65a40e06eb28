"""What this process computes votes with: it is looked at, and tested, in the process itself."""

import platform
from functools import cache
from pathlib import Path

import torch

from ndc_core.analysis.exactness import Exactness
from ndc_core.analysis.self_test import PATIENCE_SECONDS, self_test
from ndc_core.classifiers.voter import Voter
from pipeline.store.devices import DeviceRecord


def device_record(classifier: Voter) -> DeviceRecord:
    """Tests a loaded classifier's device, which takes seconds. On a CPU it stops early where passes are slow."""
    device = torch.device(classifier.device)
    on_gpu = device.type == "cuda"
    patience_seconds = float("inf") if on_gpu else PATIENCE_SECONDS * torch.get_num_threads()
    try:
        exactness = self_test(classifier, patience_seconds=patience_seconds)
    except Exception:  # votes meet the same fault, and name the unit that has it
        exactness = Exactness()
    if not on_gpu:
        return DeviceRecord(device.type, processor(), torch.__version__, exactness=exactness)
    cudnn = torch.backends.cudnn.version()
    versions = torch.__version__, torch.version.cuda or "", str(cudnn or "")
    return DeviceRecord(device.type, torch.cuda.get_device_name(device), *versions, exactness)


@cache
def processor() -> str:
    """The CPU's model and the instructions that PyTorch uses of it: others round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an ARM CPU, which does not give its name there
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
