"""Noise as a pure function of (seed, image, phase, draw): rule S1 of docs/soundness.md.

Nothing else enters a stream, so a draw meets the same noise bit for bit whatever batch, worker,
order or retry it is computed in. Each step's noise is a stream of its own, so that it can be drawn when a vote reaches
the step, and not at all otherwise.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from ndc_core.noise.shared_path import PathNoise
from ndc_core.noise.smoothing import InputNoise

Phase = Literal["selection", "estimation"]
Key = int  # 128 bits
# Streams of one draw, told apart by the third word of the counter: one would have to be 2^128 blocks long to meet the
# next. The input's noise is stream 0.
REFINE, SIFT = 1, 2**32
PAIRS_OF_A_JOB = 32
_of_thread = threading.local()


def draw_key(*, seed: int, image_id: str, phase: Phase, draw: int) -> Key:
    """A hash of the draw's whole name."""
    name = json.dumps([seed, image_id, phase, draw]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")


def draw_generator(*, seed: int, image_id: str, phase: Phase, draw: int) -> np.random.Generator:
    """A counter-based generator whose key is the draw's, at the start of stream 0."""
    key = draw_key(seed=seed, image_id=image_id, phase=phase, draw=draw)
    return np.random.Generator(np.random.Philox(key=key))


def stream(key: Key, number: int) -> np.random.Generator:
    """One of a draw's streams, from its start on. A thread has one generator, which the next call sets anew: that takes
    a fifth of the time of making one."""
    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = np.random.Generator(np.random.Philox(key=0))
        _of_thread.start = np.random.Philox(key=0).state
    state = _of_thread.start
    state["state"]["key"][:] = key & (2**64 - 1), key >> 64
    state["state"]["counter"][2] = number
    _of_thread.generator.bit_generator.state = state
    found: np.random.Generator = _of_thread.generator
    return found


@dataclass(frozen=True)
class StepStreams:
    """Standard normal noise of the steps of a batch of draws, in single precision, drawn where it is asked for."""

    keys: Sequence[Key]
    steps: int
    image_shape: tuple[int, int, int]
    first_stream: int
    threads: Executor | None = field(default=None, compare=False)

    def fill(
        self, out: Float[np.ndarray, "pairs c h w"], draw: Int[np.ndarray, " pairs"], step: Int[np.ndarray, " pairs"]
    ) -> None:
        """Draws the noise of each pair of a draw and a step; numpy lets other threads run meanwhile."""
        jobs = [slice(first, first + PAIRS_OF_A_JOB) for first in range(0, len(draw), PAIRS_OF_A_JOB)]

        def one(job: slice) -> None:
            for row, of_draw, of_step in zip(out[job], draw[job].tolist(), step[job].tolist(), strict=True):
                stream(self.keys[of_draw], self.first_stream + of_step).standard_normal(out=row, dtype=np.float32)

        if self.threads is None or len(jobs) == 1:
            for job in jobs:
                one(job)
        else:
            list(self.threads.map(one, jobs))

    def all(self) -> Float[np.ndarray, "draws steps c h w"]:
        """In the calling thread alone: that may be one of `threads`, which must not wait for the others."""
        noise = np.empty((len(self.keys), self.steps, *self.image_shape), dtype=np.float32)
        draw, step = (ids.ravel() for ids in np.indices(noise.shape[:2]))
        replace(self, threads=None).fill(noise.reshape(-1, *self.image_shape), draw, step)
        return noise


@dataclass(frozen=True)
class DrawNoise:
    """Noise of a batch of draws: of the input, as its law draws it; standard normal of the refine and the sift grid."""

    input: Shaped[np.ndarray, "draws c h w"]
    refine: Float[np.ndarray, "draws refine_steps c h w"] | StepStreams
    sift: Float[np.ndarray, "draws sift_steps c h w"] | StepStreams


def step_streams(
    keys: Sequence[Key],
    *,
    image_shape: tuple[int, int, int],
    refine_steps: int,
    sift_steps: int,
    threads: Executor | None = None,
) -> tuple[StepStreams, StepStreams]:
    """Of the refine and of the sift grid: the classifier's own noise, which does not depend on the other grid."""
    refine = StepStreams(keys, refine_steps, image_shape, REFINE, threads)
    return refine, StepStreams(keys, sift_steps, image_shape, SIFT, threads)


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
    """All noise of the named draws. The input's, whose law the certificate speaks of, does not change with the grid."""
    keys = [draw_key(seed=seed, image_id=image_id, phase=phase, draw=draw) for draw in draws]
    inputs = np.stack([input_noise.draw(stream(key, 0), image_shape) for key in keys])
    refine, sift = step_streams(keys, image_shape=image_shape, refine_steps=refine_steps, sift_steps=sift_steps)
    return DrawNoise(inputs, refine.all(), sift.all())


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
