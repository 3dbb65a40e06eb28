"""What is found in a file of another program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class ConversionError(ValueError):
    """A file that cannot become a checkpoint: what is wrong with it."""


@dataclass(frozen=True)
class Model:
    """A network of ours by name, its arguments and weights, and where they came from.

    `notes` are kept with the checkpoint; its `remarks` are sentences on what was taken, left or assumed.
    """

    network: str
    arguments: dict[str, Any]
    weights: Mapping[str, Tensor]
    knows_no_label: bool
    notes: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels = self.arguments["img_channels" if "img_channels" in self.arguments else "in_channels"]
        sides = self.arguments["img_resolution"]
        height, width = sides if isinstance(sides, list) else (sides, sides)
        return channels, height, width
