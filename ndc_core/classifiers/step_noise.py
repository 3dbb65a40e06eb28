"""The noise of a batch's steps on the device: given as a whole, or drawn when a vote reaches a step."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.models.transfers import to_device
from ndc_core.noise.step_streams import StepStreams

Reach = Callable[[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]], None]


def nothing_to_draw(draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]) -> None:
    """For a path whose noise is complete."""


class StepNoise:
    """`values` is NaN where the noise is not drawn yet: a value read by mistake never becomes a vote (rule S9)."""

    values: Float[Tensor, "draws steps c h w"]

    def __init__(self, noise: Float[np.ndarray, "draws steps c h w"] | StepStreams, device: torch.device) -> None:
        if isinstance(noise, StepStreams):
            self.streams: StepStreams | None = noise
            self.key_words = to_device(noise.key_words.numpy(), device)
            shape = (len(noise.keys), noise.steps, *noise.image_shape)
            self.values = torch.full(shape, torch.nan, device=device)
            self.drawn = np.zeros(shape[:2], dtype=bool)
        else:
            self.streams, self.values = None, to_device(noise, device)

    def reach(self, steps: int) -> Reach:
        """A function that draws the missing noise of rows, for a path of the last `steps` steps that have noise."""
        streams = self.streams
        if streams is None:
            return nothing_to_draw
        before = streams.steps - steps

        def draw_missing(draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]) -> None:
            missing = np.zeros_like(self.drawn)
            missing[draw, step + before] = True
            self._draw(*(missing & ~self.drawn).nonzero())

        return draw_missing

    def _draw(self, draw: Int[np.ndarray, " pairs"], step: Int[np.ndarray, " pairs"]) -> None:
        assert self.streams is not None
        if not len(draw):
            return
        on_device = to_device(np.stack([draw, step]), self.values.device)
        self.values[on_device[0], on_device[1]] = self.streams.draw(self.key_words[on_device[0]], on_device[1])
        self.drawn[draw, step] = True
