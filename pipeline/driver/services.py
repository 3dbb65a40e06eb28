"""Checks, before any work, what a run needs besides model and data."""

from collections.abc import Callable, Iterable, Sequence

from upath import UPath

from pipeline.declaration.config import RunConfig
from pipeline.locations import check_can_be_made
from pipeline.report.mlflow_address import tracking_uri, without_password
from pipeline.report.mlflow_tracker import check_tracking
from pipeline.workers.ray_address import check_ray


def check_services(configs: Iterable[RunConfig]) -> None:
    """Whether the Ray and the MLflow of these runs can be reached; starts and creates nothing.

    Raises:
        RayAddressError: no Ray can be joined or started.
        TrackingError: MLflow is asked for, and cannot be used.
    """
    check_ray()
    for config in {(config.tracking, config.experiment): config for config in configs}.values():
        check_tracking(config)


def say_services(configs: Sequence[RunConfig], folder: UPath, *, say: Callable[[str], None]) -> None:
    """As `check_services`, and checks that a folder can be written; says where the runs would be kept and tracked.

    Raises:
        LocationError: the folder cannot be written.
        RayAddressError, TrackingError: see `check_services`.
    """
    check_can_be_made(folder)
    say(f"run: {folder}, which can be written")
    check_services(configs)
    if all(config.tracking == "none" for config in configs):
        say("tracking: none")
    else:
        uri = tracking_uri()
        say(f"tracking: {without_password(uri)}{', which answers' * uri.startswith('http')}")
