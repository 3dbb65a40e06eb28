"""The programs of `fused_kernels` in Triton's language; tensors are channels last.

A row's result is a function of that row alone, added up in one fixed order: there are no atomics, and no program works
on two rows. Arithmetic is in float32.
"""

import triton
import triton.language as tl


@triton.jit
def _source(p, width, resample: tl.constexpr):
    """The pixel that pixel p of an image of this width is read from; of four that are averaged, the first."""
    if resample == "up":
        p = (p // width // 2) * (width // 2) + (p % width) // 2
    if resample == "down":
        p = (p // width) * 4 * width + (p % width) * 2
    return p


@triton.jit
def sums_kernel(x, sums, pixels, channels, tile_pixels: tl.constexpr, tile_channels: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    inside = c < channels
    base = x + row * pixels * channels + c[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    squares = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for first in range(0, pixels, tile_pixels):
        p = first + tl.arange(0, tile_pixels)
        value = tl.load(base + p[:, None] * channels, mask=(p < pixels)[:, None] & inside[None, :], other=0.0)
        value = value.to(tl.float32)
        total += value
        squares += value * value
    own = sums + row * 2 * channels + c
    tl.store(own, tl.sum(total, axis=0), mask=inside)
    tl.store(own + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
def add_kernel(
    x,
    y,
    bias,
    out,
    sums,
    scale,
    pixels,
    y_pixels,
    width,
    channels,
    resample: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    inside = c < channels
    base = row * pixels * channels + c[None, :]
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    squares = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for first in range(0, pixels, tile_pixels):
        p = first + tl.arange(0, tile_pixels)
        mask = (p < pixels)[:, None] & inside[None, :]
        at = base + p[:, None] * channels
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        from_y = y + row * y_pixels * channels + _source(p, width, resample)[:, None] * channels + c[None, :]
        other = tl.load(from_y, mask=mask, other=0.0).to(tl.float32)
        if resample == "down":
            other += tl.load(from_y + channels, mask=mask, other=0.0).to(tl.float32)
            other += tl.load(from_y + 2 * width * channels, mask=mask, other=0.0).to(tl.float32)
            other += tl.load(from_y + (2 * width + 1) * channels, mask=mask, other=0.0).to(tl.float32)
            other *= 0.25
        value = (value + other + shift) * scale
        stored = value.to(out.dtype.element_ty)
        tl.store(out + at, stored, mask=mask)
        value = tl.where(mask, stored.to(tl.float32), 0.0)
        total += value
        squares += value * value
    own = sums + row * 2 * channels + c
    tl.store(own, tl.sum(total, axis=0), mask=inside)
    tl.store(own + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
def affine_kernel(
    first_sums,
    second_sums,
    weight,
    bias,
    before,
    scale,
    shift,
    factors,
    before_stride,
    modulation_stride,
    pixels,
    first_channels,
    channels,
    groups,
    eps,
    has_before: tl.constexpr,
    is_modulated: tl.constexpr,
    most_groups: tl.constexpr,
    most_members: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    size = channels // groups
    group = tl.arange(0, most_groups)[:, None]
    member = tl.arange(0, most_members)[None, :]
    inside = (group < groups) & (member < size)
    c = group * size + member
    ours = c < first_channels
    first = first_sums + row * 2 * first_channels + c
    second = second_sums + row * 2 * (channels - first_channels) + c - first_channels
    total = tl.load(first, mask=inside & ours, other=0.0) + tl.load(
        second, mask=inside & (c >= first_channels), other=0.0
    )
    squares = tl.load(first + first_channels, mask=inside & ours, other=0.0) + tl.load(
        second + (channels - first_channels), mask=inside & (c >= first_channels), other=0.0
    )
    added = tl.zeros([most_groups, most_members], tl.float32)
    if has_before:
        added = tl.load(before + row * before_stride + c, mask=inside, other=0.0).to(tl.float32)
        squares += added * (2 * total + pixels * added)
        total += pixels * added
    count = pixels * size * 1.0
    mean = tl.sum(total, axis=1)[:, None] / count
    variance = tl.maximum(tl.sum(squares, axis=1)[:, None] / count - mean * mean, 0.0)
    factor = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    constant = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) + (added - mean) * factor
    if is_modulated:
        by = tl.load(scale + row * modulation_stride + c, mask=inside, other=0.0).to(tl.float32) + 1
        factor *= by
        constant = constant * by + tl.load(shift + row * modulation_stride + c, mask=inside, other=0.0).to(tl.float32)
    own = factors + row * 2 * channels + c
    tl.store(own, factor, mask=inside)
    tl.store(own + channels, constant, mask=inside)


@triton.jit
def _active(at, mask, factor, constant, silu: tl.constexpr):
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32) * factor + constant
    if silu:
        value = value * tl.sigmoid(value)
    return value


@triton.jit
def apply_kernel(
    x,
    factors,
    out,
    pixels,
    x_pixels,
    width,
    channels,
    offset,
    wide,
    has_factors: tl.constexpr,
    silu: tl.constexpr,
    resample: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    row = tl.program_id(2).to(tl.int64)
    p = tl.program_id(1) * tile_pixels + tl.arange(0, tile_pixels)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    factor, constant = 1.0, 0.0
    if has_factors:
        own = factors + row * 2 * wide + offset + c
        factor = tl.load(own, mask=c < channels, other=0.0)[None, :]
        constant = tl.load(own + wide, mask=c < channels, other=0.0)[None, :]
    at = x + row * x_pixels * channels + _source(p, width, resample)[:, None] * channels + c[None, :]
    value = _active(at, mask, factor, constant, silu)
    if resample == "down":
        value += _active(at + channels, mask, factor, constant, silu)
        value += _active(at + 2 * width * channels, mask, factor, constant, silu)
        value += _active(at + (2 * width + 1) * channels, mask, factor, constant, silu)
        value *= 0.25
    to = out + row * pixels * wide + p[:, None] * wide + offset + c[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _before_silu(x, gradient, factor, constant, silu: tl.constexpr):
    if silu:
        u = x * factor + constant
        gate = tl.sigmoid(u)
        gradient = gradient * gate * (1 + u * (1 - gate))
    return gradient


@triton.jit
def backward_sums_kernel(
    x,
    factors,
    gradient,
    sums,
    pixels,
    channels,
    offset,
    wide,
    silu: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    inside = c < channels
    own = row * 2 * wide + offset + c
    factor = tl.load(factors + own, mask=inside, other=0.0)[None, :]
    constant = tl.load(factors + own + wide, mask=inside, other=0.0)[None, :]
    total = tl.zeros([tile_pixels, tile_channels], tl.float32)
    products = tl.zeros([tile_pixels, tile_channels], tl.float32)
    for first in range(0, pixels, tile_pixels):
        p = first + tl.arange(0, tile_pixels)
        mask = (p < pixels)[:, None] & inside[None, :]
        value = tl.load(x + row * pixels * channels + p[:, None] * channels + c[None, :], mask=mask, other=0.0)
        value = value.to(tl.float32)
        g = tl.load(gradient + row * pixels * wide + p[:, None] * wide + offset + c[None, :], mask=mask, other=0.0)
        g = _before_silu(value, g.to(tl.float32), factor, constant, silu)
        total += g
        products += g * value
    tl.store(sums + own, tl.sum(total, axis=0), mask=inside)
    tl.store(sums + own + wide, tl.sum(products, axis=0), mask=inside)


@triton.jit
def backward_apply_kernel(
    x,
    factors,
    gradient,
    through,
    out,
    pixels,
    channels,
    offset,
    wide,
    silu: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    row = tl.program_id(2).to(tl.int64)
    p = tl.program_id(1) * tile_pixels + tl.arange(0, tile_pixels)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    inside = c < channels
    mask = (p < pixels)[:, None] & inside[None, :]
    own = row * 2 * wide + offset + c
    factor = tl.load(factors + own, mask=inside, other=0.0)[None, :]
    constant = tl.load(factors + own + wide, mask=inside, other=0.0)[None, :]
    at = row * pixels * channels + p[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gradient + row * pixels * wide + p[:, None] * wide + offset + c[None, :], mask=mask, other=0.0)
    g = _before_silu(value, g.to(tl.float32), factor, constant, silu)
    slope = tl.load(through + own, mask=inside, other=0.0)[None, :]
    level = tl.load(through + own + wide, mask=inside, other=0.0)[None, :]
    tl.store(out + at, (factor * g + slope * value + level).to(out.dtype.element_ty), mask=mask)
