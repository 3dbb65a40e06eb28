"""Which operation makes a row's result depend on its place in the pass, and what helps.

A pass is made twice, with its rows in two orders, and each operation's inputs and outputs are compared row by row: an
operation whose inputs agree and whose output does not is a cause.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ndc_core.models.networks import attention, fused_unet

NOT_COMPUTED = (
    *("alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "new_empty", "permute"),
    *("select", "slice", "split", "split_with_sizes", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
)
Marks = dict[str, Tensor | None]


class Recorder(TorchDispatchMode):
    """The name, the shapes, and marks of every row of an operation's inputs and output."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.operations: list[tuple[str, list[Tensor | None], Tensor | None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in NOT_COMPUTED:
            return func(*args, **(kwargs or {}))
        flat = [tensor for tensor in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        before = [self.marks(tensor) for tensor in flat]
        result = func(*args, **(kwargs or {}))
        first = next(
            iter(tensor for tensor in torch.utils._pytree.tree_leaves(result) if isinstance(tensor, Tensor)), None
        )
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in flat[:3])
        self.operations.append((f"{name} {shapes}", before, None if first is None else self.marks(first)))
        return result

    def marks(self, x: Tensor) -> Tensor | None:
        """A number for the bits of each row, of tensors that have rows."""
        if not x.dim() or x.shape[0] % self.rows or not x.is_floating_point() or not x.numel():
            return None
        with torch.utils._python_dispatch._disable_current_modes():
            bits = x.detach().reshape(self.rows, -1).view({2: torch.int16, 4: torch.int32}[x.element_size()])
            weights = torch.arange(bits.shape[1], device=x.device) % 65_521 + 1
            return torch.cat([(some.long() * weights).sum(1) for some in bits.split(16)])


def causes(call: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Iterator[str]:
    """The operations, in their order, whose output alone differs between two orders of the rows."""
    rows = len(given[0])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).to(given[0].device)
    recordings = []
    for inputs in (given, tuple(tensor[order] for tensor in given)):
        with torch.no_grad(), Recorder(rows) as recorder:
            call(*inputs)
        recordings.append(recorder.operations)

    def differing(first: Tensor | None, second: Tensor | None) -> int:
        """Weights, whose rows are not the pass's, have not moved."""
        if first is None or second is None or torch.equal(first, second):
            return 0
        return int((first[order] != second).sum())

    for (name, ins, out), (_, other_ins, other_out) in zip(*recordings, strict=True):
        inside = max((differing(*pair) for pair in zip(ins, other_ins, strict=True)), default=0)
        if not inside and (outside := differing(out, other_out)):
            yield f"{name}: {outside} of {rows} rows differ"


@contextmanager
def no_split_k() -> Iterator[None]:
    products: Any = torch.backends.cuda.matmul
    products.allow_fp16_reduced_precision_reduction = (False, False)
    products.allow_bf16_reduced_precision_reduction = (False, False)
    try:
        yield
    finally:
        products.allow_fp16_reduced_precision_reduction = True
        products.allow_bf16_reduced_precision_reduction = True


@contextmanager
def attention_by(backend: SDPBackend) -> Iterator[None]:
    def chosen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    with patch.object(attention, "attention", chosen):
        yield


@contextmanager
def convolutions_for_products() -> Iterator[None]:
    plain = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) < 10_000:
            return plain(x, weight, bias)
        return F.conv2d(x[:, :, None, None], weight[:, :, None, None], bias)[:, :, 0, 0]

    with patch.object(fused_unet.F, "linear", linear):
        yield


@contextmanager
def cublas_lt() -> Iterator[None]:
    before = torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@contextmanager
def small_products_in_float32() -> Iterator[None]:
    plain = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) >= 10_000:
            return plain(x, weight, bias)
        return plain(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    with patch.object(F, "linear", linear):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


REMEDIES: dict[str, Callable[[], Any]] = {
    "none": nothing,
    "no split K": no_split_k,
    "flash attention": lambda: attention_by(SDPBackend.FLASH_ATTENTION),
    "efficient attention": lambda: attention_by(SDPBackend.EFFICIENT_ATTENTION),
    "1x1 as convolutions": convolutions_for_products,
    "cuBLASLt": cublas_lt,
    "small products in float32": small_products_in_float32,
}
