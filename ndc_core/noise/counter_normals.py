"""Standard normal numbers as a function of a key and a counter, made on the device that needs them.

The words are those of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the same on
every device; pairs of words become pairs of normal numbers (Box and Muller 1958) in single precision, the same up to
the rounding of the device's logarithm, sine and cosine. Words have 32 bits, so no number lies beyond 6.8.
"""

import importlib
import importlib.util
import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Words = Int[Tensor, "..."]  # of 32 bits each, in int64
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 2**32
# Blocks of an intermediate tensor: what a CPU's cache holds, and what keeps a GPU without Triton busy.
BLOCKS_AT_ONCE = {"cpu": 2**14}
MOST_BLOCKS_AT_ONCE = 2**24


def fill_normal(out: Float[Tensor, "rows numbers"], keys: Int[Tensor, "rows 4"], streams: Int[Tensor, " rows"]) -> None:
    """Fills each row with the numbers of one stream of one key of 128 bits, in four words.

    Number j * blocks + b of a row is made from the words of block b, where blocks = ceil(numbers / 4).
    """
    if not out.numel():  # the noise of a classifier without steps
        return
    if out.is_cuda and has_kernel():
        _kernel().fill_normal(out, keys, streams)
        return
    rows_at_once = max(1, BLOCKS_AT_ONCE.get(out.device.type, MOST_BLOCKS_AT_ONCE) * 4 // max(4, out.shape[1]))
    for some in zip(*(tensor.split(rows_at_once) for tensor in (out, keys, streams)), strict=True):
        _fill(*some)


def _fill(out: Float[Tensor, "rows numbers"], keys: Int[Tensor, "rows 4"], streams: Int[Tensor, " rows"]) -> None:
    blocks = blocks_of(out.shape[1])
    first, second, third, fourth = keys[:, :, None].unbind(1)
    counter = torch.arange(blocks, device=out.device)[None], streams[:, None], third, fourth
    words = [part.expand(len(out), blocks) for part in philox(counter, (first, second))]
    for place, numbers in enumerate((*box_muller(*words[:2]), *box_muller(*words[2:]))):
        window = out[:, place * blocks : (place + 1) * blocks]
        window.copy_(numbers[:, : window.shape[1]])


def blocks_of(numbers: int) -> int:
    return -(-numbers // 4)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four words of each counter and key."""
    c0, c1, c2, c3 = counter
    rounds = torch.arange(ROUNDS, device=key[0].device)
    left_keys, right_keys = (
        (word[..., None] + rounds * step & WORD - 1).unbind(-1) for word, step in zip(key, KEY_STEPS, strict=True)
    )
    for k0, k1 in zip(left_keys, right_keys, strict=True):
        # The product of two words may wrap around in int64; its bits are the same.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (right >> 32 & WORD - 1) ^ c1 ^ k0, right & WORD - 1
        c2, c3 = (left >> 32 & WORD - 1) ^ c3 ^ k1, left & WORD - 1
    return c0, c1, c2, c3


def box_muller(radius: Words, angle: Words) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    uniform = radius.float() * (1 / WORD) + 0.5 / WORD  # never 0
    length = uniform.log_().mul_(-2).sqrt_()
    turn = angle.float() * (2 * math.pi / WORD)
    return length * turn.cos(), length * turn.sin()


def has_kernel() -> bool:
    """Whether Triton is installed, without which CUDA takes some hundred small steps instead of one."""
    return importlib.util.find_spec("triton") is not None


@cache
def _kernel() -> Any:
    return importlib.import_module("ndc_core.noise.counter_kernel")
