"""What a run needs besides model and data: whether it is there, before any work."""

from collections.abc import Iterable

from pipeline.config import RunConfig
from pipeline.ray_address import check_ray
from pipeline.tracking import check_tracking


def check_services(configs: Iterable[RunConfig]) -> None:
    """Whether the Ray and the MLflow of these runs can be reached; starts and creates nothing.

    Raises:
        RayAddressError: no Ray can be joined or started.
        TrackingError: MLflow is asked for, and cannot be used.
    """
    check_ray()
    for config in {(config.tracking, config.experiment): config for config in configs}.values():
        check_tracking(config)
