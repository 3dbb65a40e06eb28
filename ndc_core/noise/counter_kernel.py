"""`counter_normals` as one Triton kernel, for CUDA."""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.noise import counter_normals

BLOCKS_OF_A_PROGRAM = 256
ROUNDS = tl.constexpr(counter_normals.ROUNDS)
LEFT, RIGHT = (tl.constexpr(number) for number in counter_normals.MULTIPLIERS)
LEFT_STEP, RIGHT_STEP = (tl.constexpr(number) for number in counter_normals.KEY_STEPS)
UNIT = tl.constexpr(1 / counter_normals.WORD)
TURN = tl.constexpr(2 * math.pi / counter_normals.WORD)


def fill_normal(out: Float[Tensor, "rows numbers"], keys: Int[Tensor, "rows 4"], streams: Int[Tensor, " rows"]) -> None:
    """See `counter_normals.fill_normal`."""
    rows, numbers = out.shape
    blocks = counter_normals.blocks_of(numbers)
    if rows and numbers:
        with torch.cuda.device_of(out):
            _fill[rows, triton.cdiv(blocks, BLOCKS_OF_A_PROGRAM)](
                out, keys.contiguous(), streams.contiguous(), numbers, blocks, out.stride(0), BLOCKS_OF_A_PROGRAM
            )


@triton.jit
def _store(out, first, numbers, block, radius, angle, blocks):
    length = tl.sqrt(-2.0 * tl.log(radius.to(tl.float32) * UNIT + 0.5 * UNIT))
    turn = angle.to(tl.float32) * TURN
    place = first * blocks + block
    tl.store(out + place, length * tl.cos(turn), mask=(block < blocks) & (place < numbers))
    tl.store(out + place + blocks, length * tl.sin(turn), mask=(block < blocks) & (place + blocks < numbers))


@triton.jit
def _fill(out, keys, streams, numbers, blocks, stride, blocks_of_a_program: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * blocks_of_a_program + tl.arange(0, blocks_of_a_program)
    zero = tl.zeros([blocks_of_a_program], tl.uint32)
    k0 = tl.load(keys + 4 * row).to(tl.uint32)
    k1 = tl.load(keys + 4 * row + 1).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = zero + tl.load(streams + row).to(tl.uint32)
    c2 = zero + tl.load(keys + 4 * row + 2).to(tl.uint32)
    c3 = zero + tl.load(keys + 4 * row + 3).to(tl.uint32)
    left = zero + LEFT
    right = zero + RIGHT
    for _ in tl.static_range(ROUNDS):
        high_left, low_left = tl.umulhi(c0, left), c0 * left
        high_right, low_right = tl.umulhi(c2, right), c2 * right
        c0, c1 = high_right ^ c1 ^ k0, low_right
        c2, c3 = high_left ^ c3 ^ k1, low_left
        k0 += LEFT_STEP
        k1 += RIGHT_STEP
    _store(out + row * stride, 0, numbers, block, c0, c1, blocks)
    _store(out + row * stride, 2, numbers, block, c2, c3, blocks)
