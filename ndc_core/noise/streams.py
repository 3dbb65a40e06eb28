"""Noise as a pure function of (seed, image, phase, draw): rule S1 of docs/soundness.md.

Nothing else enters a stream, so a draw meets the same noise bit for bit in any batch, worker, order or retry. The
input's noise, whose law a certificate is about, is drawn by the host's processor from one kind of generator; the noise
of the steps, whose law it leaves open, is drawn on the device from another (`step_streams`).
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from ndc_core.noise.shared_path import PathNoise
from ndc_core.noise.smoothing import InputNoise
from ndc_core.noise.step_streams import Key, StepStreams, step_streams

Phase = Literal["selection", "estimation"]
_of_thread = threading.local()


def draw_key(*, seed: int, image_id: str, phase: Phase, draw: int) -> Key:
    """A hash of the draw's whole name."""
    name = json.dumps([seed, image_id, phase, draw]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")


def draw_generator(*, seed: int, image_id: str, phase: Phase, draw: int) -> np.random.Generator:
    """A counter-based generator whose key is the draw's."""
    key = draw_key(seed=seed, image_id=image_id, phase=phase, draw=draw)
    return np.random.Generator(np.random.Philox(key=key))


def input_generator(key: Key) -> np.random.Generator:
    """The stream of a draw's input, from its start. A thread has one generator, which the next call resets: that takes
    a fifth of the time of making one."""
    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = np.random.Generator(np.random.Philox(key=0))
        _of_thread.start = np.random.Philox(key=0).state
    state = _of_thread.start
    state["state"]["key"][:] = key & (2**64 - 1), key >> 64
    _of_thread.generator.bit_generator.state = state
    generator: np.random.Generator = _of_thread.generator
    return generator


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


def draw_path_noise(
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
    path_noise: PathNoise,
    image_shape: tuple[int, int, int],
) -> Shaped[np.ndarray, "draws path_sigmas c h w"]:
    """Noise of the named draws at every noise level of a path."""
    return np.stack(
        [
            path_noise.draw(draw_generator(seed=seed, image_id=image_id, phase=phase, draw=draw), image_shape)
            for draw in draws
        ]
    )
