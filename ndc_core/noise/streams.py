"""Noise as a pure function of (seed, image, phase, draw): rule S1 of docs/soundness.md.

Nothing else enters a stream, so a draw meets the same noise bit for bit whatever batch, worker,
order or retry it is computed in.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from ndc_core.noise.shared_path import Walk
from ndc_core.noise.smoothing import InputNoise

Phase = Literal["selection", "estimation"]


@dataclass(frozen=True)
class DrawNoise:
    """Noise of a batch of draws: of the input, as its law draws it; standard normal of the refine and the sift grid."""

    input: Shaped[np.ndarray, "draws c h w"]
    refine: Float[np.ndarray, "draws refine_steps c h w"]
    sift: Float[np.ndarray, "draws sift_steps c h w"]


def draw_generator(*, seed: int, image_id: str, phase: Phase, draw: int) -> np.random.Generator:
    """A counter-based generator whose key is a hash of the draw's whole name."""
    name = json.dumps([seed, image_id, phase, draw]).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


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
    """Noise of the named draws.

    The input's noise, whose law the certificate speaks of, is drawn first: it does not change with the grid. The noise
    of the steps is the classifier's own and in single precision.
    """
    inputs = []
    refine = np.empty((len(draws), refine_steps, *image_shape), dtype=np.float32)
    sift = np.empty((len(draws), sift_steps, *image_shape), dtype=np.float32)
    for row, draw in enumerate(draws):
        generator = draw_generator(seed=seed, image_id=image_id, phase=phase, draw=draw)
        inputs.append(input_noise.draw(generator, image_shape))
        generator.standard_normal(out=refine[row], dtype=np.float32)
        generator.standard_normal(out=sift[row], dtype=np.float32)
    return DrawNoise(np.stack(inputs), refine, sift)


def draw_walks(
    *, seed: int, image_id: str, phase: Phase, draws: Sequence[int], walk: Walk, image_shape: tuple[int, int, int]
) -> Shaped[np.ndarray, "draws stations c h w"]:
    """Noise of the named draws at every station of a walk."""
    return np.stack(
        [walk.draw(draw_generator(seed=seed, image_id=image_id, phase=phase, draw=draw), image_shape) for draw in draws]
    )
