"""What may come out of a pickle: plain data, arrays, tensors, and objects reduced to name and state."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_DIMENSIONS = 32

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
DTYPES = {f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in STORAGE_DTYPES.values()}


class UnsafePickleError(ValueError):
    """A file that is damaged, or asks for more than data: where, and what."""


class PlacedError(UnsafePickleError):
    """The same, with a message that already names the byte."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it is never looked up."""

    path: str


@dataclass
class Instance:
    """An object of a class that is not ours: its name and what was stored of it."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Storage:
    """Bytes of tensors; `content` may be found only after the pickle that names them."""

    dtype: torch.dtype
    numel: int
    content: memoryview | None = None


@dataclass(frozen=True)
class StoredTensor:
    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The tensor as a view of the file.

        Raises:
            UnsafePickleError: it reaches outside of its storage.
        """
        content = self.storage.content
        if content is None:
            raise UnsafePickleError("a tensor whose storage is missing")
        elements = len(content) // self.dtype.itemsize
        if (
            len(self.size) != len(self.stride)
            or elements < self.storage.numel * self.storage.dtype.itemsize // self.dtype.itemsize
        ):
            raise UnsafePickleError(f"a tensor of size {self.size} whose storage is shorter than it says")
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if last >= elements:
            raise UnsafePickleError(f"a tensor of size {self.size} that reaches outside of its storage")
        flat = torch.frombuffer(content, dtype=self.dtype, count=elements)
        return flat.as_strided(self.size, self.stride, self.offset)


@dataclass
class ArrayType:
    dtype: np.dtype[Any] | None = None


@dataclass
class Array:
    """A numpy array that is being built."""

    values: np.ndarray | None = None


NUMERIC_TYPE = re.compile(r"[<>=|]?[biufc][0-9]{1,2}")


def numeric_type(name: Any) -> ArrayType:
    text = name.decode("latin1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not NUMERIC_TYPE.fullmatch(text):
        shown = repr(text)[:20] if isinstance(text, str) else f"a {type(text).__name__}"
        raise UnsafePickleError(f"it holds an array of {shown}, which is no type of numbers")
    return ArrayType(np.dtype(text))


def is_shape(numbers: Any) -> bool:
    in_range = isinstance(numbers, tuple) and len(numbers) <= MOST_DIMENSIONS
    return in_range and all(type(n) is int and 0 <= n < 2**40 for n in numbers)


def array_of(content: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, ArrayType) or kind.dtype is None or not isinstance(content, bytes | memoryview):
        raise UnsafePickleError("it holds an array that is not one of numbers")
    if not is_shape(shape):
        raise UnsafePickleError("it holds an array of no possible shape")
    if len(content) != kind.dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise UnsafePickleError(f"it holds an array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise UnsafePickleError("it builds a tensor of something that is no storage")
    dtype = DTYPES.get(rest[2].path) if len(rest) > 2 and isinstance(rest[2], Name) else storage.dtype
    if dtype is None or not is_shape(size) or not is_shape(stride) or not is_shape((offset,)):
        raise UnsafePickleError("it builds a tensor of no known kind")
    return StoredTensor(storage, offset, size, stride, dtype)


def _persistent(meta: Any) -> Instance:
    """EDM's own form: the class's source code is in `module_src`, and is dropped here."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise UnsafePickleError("it holds a persistent object that is no instance of a class")
    state = meta.get("state")
    return Instance(meta["class_name"], state if isinstance(state, dict) else {})


def _encoded(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("it encodes text in another way than numpy does")
    return text.encode("latin1")


def _scalar(kind: Any, content: Any) -> Any:
    return array_of(content, kind, (), "C").item()


def _pairs(items: Any = ()) -> dict[Any, Any]:
    pairs = isinstance(items, list | tuple) and all(isinstance(item, list | tuple) and len(item) == 2 for item in items)
    if not pairs:
        raise UnsafePickleError("it builds a dict of something that is no pairs")
    return {plain_key(key): value for key, value in items}


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _pairs,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch.Size": lambda size: tuple(size),
    "torch.device": lambda *where: Name("torch.device"),
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "_codecs.encode": _encoded,
    "numpy.dtype": lambda name, *how: numeric_type(name),
    **{
        f"{numpy}.{name}": call
        for numpy in ("numpy.core", "numpy._core")
        for name, call in (
            ("multiarray._reconstruct", lambda *kind: Array()),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", array_of),
        )
    },
    **{f"{module}.{name}": list for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    "__builtin__.bytes": lambda: b"",  # how protocols 1 and 2 write empty bytes
}
PLAIN_CLASSES = ("dnnlib.util.EasyDict", "collections.OrderedDict")


def plain_key(key: Any) -> Any:
    """A dict's key that is safe to hash: nothing nested."""
    if not isinstance(key, str | bytes | int | float | None):
        raise UnsafePickleError(f"it holds a dict with a {type(key).__name__} for a key")
    return key
