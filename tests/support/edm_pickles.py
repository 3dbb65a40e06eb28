"""Pickles of the structure that NVIDIA's programs write, made from weights of our own; their code is not needed."""

import io
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SOURCE = "import os\nos.system('touch {marker}')\n"


class EasyDict(dict):
    """Pickled as dnnlib.util.EasyDict."""


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("a reader called what the pickle named")


def _reduce(module: nn.Module) -> tuple:
    """EDM's way: the class's source code travels with the object."""
    meta = {
        "type": "class",
        "version": 6,
        "module_src": module.module_src,
        "class_name": module.class_name,
        "state": {name: value for name, value in module.__dict__.items() if name not in ("class_name", "module_src")},
    }
    return _reconstruct_persistent_obj, (meta,), None, None, None


class Persistent(nn.Module):
    def __init__(self, class_name: str, marker: Path, **arguments: Any) -> None:
        super().__init__()
        self.class_name, self.module_src = class_name, SOURCE.format(marker=marker)
        self._init_args, self._init_kwargs = (), arguments
        self.skip_scale = np.sqrt(0.5)

    def __reduce__(self) -> tuple:  # type: ignore[override]
        return _reduce(self)


def grow(root: Persistent, weights: dict[str, torch.Tensor], buffers: tuple[str, ...], marker: Path) -> None:
    """Hangs weights into a tree of modules by their names; the numbered folders are torch's own ModuleDict."""
    for name, value in weights.items():
        *path, leaf = name.split(".")
        module: nn.Module = root
        for part in path:
            if part not in module._modules:
                module._modules[part] = nn.ModuleDict() if part in ("enc", "dec") else Persistent("Layer", marker)
            module = module._modules[part]
        if leaf in buffers:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value))


@contextmanager
def their_modules() -> Iterator[None]:
    """Gives our stand-ins the names that their programs use, while they are pickled."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = EasyDict
    names = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    old = _reconstruct_persistent_obj.__module__, EasyDict.__module__
    sys.modules.update(names)
    _reconstruct_persistent_obj.__module__, EasyDict.__module__ = "torch_utils.persistence", "dnnlib.util"
    try:
        yield
    finally:
        _reconstruct_persistent_obj.__module__, EasyDict.__module__ = old
        for name in names:
            del sys.modules[name]


def precond(class_name: str, inner_name: str, inner: Persistent, marker: Path, **arguments: Any) -> Persistent:
    root = Persistent(class_name, marker, **arguments)
    root._modules[inner_name] = inner
    return root


def snapshot(ema: Persistent, marker: Path) -> dict[str, Any]:
    return {
        "ema": ema,
        "loss_fn": Persistent("EDMLoss", marker),
        "augment_pipe": None,
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="x", xflip=False),
    }


def dumped(content: Any) -> bytes:
    with their_modules():
        return pickle.dumps(content)


def torch_saved(content: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    with their_modules():
        torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call
