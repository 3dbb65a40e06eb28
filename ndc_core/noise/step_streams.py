"""The noise of a vote's steps: each step of each draw has a stream of its own, drawn when a vote reaches the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.noise.counter_normals import fill_normal
from ndc_core.noise.draw_generators import Key

# Streams of one key's counter: a step of a classifier's own grid, and a step of the sift's.
REFINE, SIFT = 0, 2**31


@dataclass(frozen=True)
class StepStreams:
    """Standard normal noise of the steps of a batch of draws: a function of the draw's key and of the step."""

    keys: Sequence[Key]
    steps: int
    image_shape: tuple[int, int, int]
    first_stream: int

    @cached_property
    def key_words(self) -> Int[Tensor, "draws 4"]:
        words = np.frombuffer(b"".join(key.to_bytes(16, "little") for key in self.keys), dtype="<u4")
        return torch.from_numpy(words.astype(np.int64).reshape(-1, 4))

    def draw(self, key_words: Int[Tensor, "pairs 4"], step: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs c h w"]:
        """The noise of pairs of a draw, given by its key's words, and a step, on the device where these are."""
        noise = torch.empty(len(step), *self.image_shape, device=step.device)
        fill_normal(noise.flatten(1), key_words, self.first_stream + step)
        return noise

    def all(self, device: torch.device | str = "cpu") -> Float[Tensor, "draws steps c h w"]:
        key_words = self.key_words.to(device).repeat_interleave(self.steps, dim=0)
        step = torch.arange(self.steps, device=device).repeat(len(self.keys))
        return self.draw(key_words, step).unflatten(0, (len(self.keys), self.steps))


def step_streams(
    keys: Sequence[Key], *, image_shape: tuple[int, int, int], refine_steps: int, sift_steps: int
) -> tuple[StepStreams, StepStreams]:
    """For the refine and for the sift grid: the classifier's own noise, which does not depend on the other grid."""
    refine = StepStreams(keys, refine_steps, image_shape, REFINE)
    return refine, StepStreams(keys, sift_steps, image_shape, SIFT)
