"""Makes checkpoints of image classifiers of other programs: TorchScript and torch.export files, and timm's models."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ndc_core.checkpoints.denoisers import CheckpointError
from ndc_core.checkpoints.image_classifiers import ClassifierDescription, refuse_to_replace, take_in_classifier

TIMM = "timm:"
HALF = 0.5  # pixels in [0, 1] become [-1, 1]


def take_in(
    source: str,
    out: Path,
    *,
    image_shape: tuple[int, int, int] | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> ClassifierDescription:
    """Makes a checkpoint of `timm:NAME` or of a file. For a timm model, timm says what is not given; for a file, the
    shape of images must be given, and pixels become [-1, 1] unless told otherwise.

    Raises:
        CheckpointError: it cannot be used; nothing is written.
    """
    refuse_to_replace(out)
    if source.startswith(TIMM):
        return _take_in_timm(source.removeprefix(TIMM), out, image_shape=image_shape, mean=mean, std=std)
    if image_shape is None:
        raise CheckpointError(f"{source} does not say which images it takes; say it, as --image-shape 3,32,32")
    scale = _for_channels(mean or [HALF], image_shape), _for_channels(std or [HALF], image_shape)
    return take_in_classifier(Path(source), out, image_shape=image_shape, mean=scale[0], std=scale[1], notes={})


def _for_channels(values: Sequence[float], image_shape: tuple[int, int, int]) -> list[float]:
    """One number stands for all channels."""
    channels = image_shape[0]
    if len(values) not in (1, channels):
        raise CheckpointError(f"{len(values)} numbers for {channels} channels; give one, or one for each channel")
    return list(values) * (channels if len(values) == 1 else 1)


def _take_in_timm(
    name: str,
    out: Path,
    *,
    image_shape: tuple[int, int, int] | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> ClassifierDescription:
    """The pretrained model, exported: actors need no timm."""
    model, says = _timm_model(name)
    shape: tuple[int, int, int] = image_shape or tuple(says["input_size"])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "timm.pt2"
        export(model, path, image_shape=shape)
        return take_in_classifier(
            path,
            out,
            image_shape=shape,
            mean=_for_channels(mean or says["mean"], shape),
            std=_for_channels(std or says["std"], shape),
            notes={"timm": name},
        )


def _timm_model(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision made for another torch raises the latter
        raise CheckpointError(
            f"timm cannot be used here ({error}); install ndc[timm], with a torchvision of your torch"
        ) from error
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # errors of timm, its hub and the network
        raise CheckpointError(
            f"timm does not give {name} with weights ({type(error).__name__}: {str(error).splitlines()[0]}); where "
            "there is no internet, export the model elsewhere with torch.export and convert that file"
        ) from error
    return model.eval(), model.pretrained_cfg


def export(model: torch.nn.Module, path: Path, *, image_shape: tuple[int, int, int]) -> None:
    """Writes a model as a torch.export file that takes any number of images."""
    rows = torch.export.Dim("rows", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's own serialisation
        program = torch.export.export(model, (torch.zeros(2, *image_shape),), dynamic_shapes=({0: rows},))
        torch.export.save(program, path)
