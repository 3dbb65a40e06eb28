"""Data that a function of the user's gives: `dataset.name = "module:function"`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.data.numpy_files import Planes, planes_of_array
from pipeline.data.source import DataError, Entry, Source, Split, checked_label
from pipeline.named_functions import called, named_function

GIVES = "images (uint8, an array of n, height, width and channels), labels (n integers) and maybe class names"


def function_data(where: str, split: Split) -> Source:
    """What the function gives when it is called with a split, once. Ids are its name and the row.

    Raises:
        FunctionError: it cannot be imported or called.
        DataError: it gives something other than images, labels and maybe class names.
    """
    given = called(where, split)
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        what = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise DataError(f"{where} gives {what}; it must return {GIVES}")
    images, labels = np.asarray(given[0]), np.asarray(given[1])
    planes = planes_of_array(f"the array of images that {where} gives", images.dtype, images.shape)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where} gives {labels.dtype} {labels.shape} as labels; it must give one integer for each of "
            f"{len(images):,} images"
        )
    source = Source("function", partial(_entries, where, images, labels, planes), _names(where, given[2:]))
    source.notes.said["function"] = f"{where} is run as a program, of {named_function(where).source}"
    return source


def _names(where: str, rest: Sequence[Any]) -> tuple[str, ...] | None:
    """The class names, if there are any.

    Raises:
        DataError: they are not a sequence of strings.
    """
    if not rest or rest[0] is None:
        return None
    if isinstance(rest[0], str) or not all(isinstance(name, str) for name in rest[0]):
        raise DataError(f"{where} gives {rest[0]!r} as class names; it must give a list of strings, by label")
    return tuple(rest[0])


def _entries(where: str, images: np.ndarray, labels: np.ndarray, planes: Planes) -> Iterator[Entry]:
    name = where.partition(":")[2]
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        image_id = f"{name}-{index:08d}"
        yield Entry(image_id, checked_label(label, image_id), partial(planes, image))
