"""All noise of a batch of draws, as a pure function of (seed, image, phase, draw): rule S1 of docs/soundness.md.

The input's noise, whose law a certificate is about, is drawn by the host's processor from one kind of generator
(`draw_generators`); the noise of the steps, whose law it leaves open, is drawn on the device from another
(`step_streams`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from ndc_core.noise.draw_generators import Phase, draw_key, input_generator
from ndc_core.noise.smoothing import InputNoise
from ndc_core.noise.step_streams import StepStreams, step_streams


@dataclass(frozen=True)
class DrawNoise:
    """Noise of a batch of draws: of the input, as its law draws it; standard normal of the refine and the sift grid."""

    input: Shaped[np.ndarray, "draws c h w"]
    refine: Float[np.ndarray, "draws refine_steps c h w"] | StepStreams
    sift: Float[np.ndarray, "draws sift_steps c h w"] | StepStreams


def draw_noise(
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
    input_noise: InputNoise,
    image_shape: tuple[int, int, int],
    refine_steps: int,
    sift_steps: int,
) -> DrawNoise:
    """All noise of the named draws. The input's, whose law the certificate is about, does not change with the grid."""
    keys = [draw_key(seed=seed, image_id=image_id, phase=phase, draw=draw) for draw in draws]
    inputs = np.stack([input_noise.draw(input_generator(key), image_shape) for key in keys])
    refine, sift = step_streams(keys, image_shape=image_shape, refine_steps=refine_steps, sift_steps=sift_steps)
    return DrawNoise(inputs, refine.all().numpy(), sift.all().numpy())
