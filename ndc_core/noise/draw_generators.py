"""A draw's key, and the generators that start from it: rule S1 of docs/soundness.md.

Nothing but (seed, image, phase, draw) enters, so a draw meets the same noise bit for bit in any batch, worker, order or
retry.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from ndc_core.noise.shared_path import PathNoise

Phase = Literal["selection", "estimation"]
Key = int  # 128 bits
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
