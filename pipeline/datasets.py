"""Labelled 8-bit images with stable ids."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

Split = Literal["train", "test"]

DIGITS_TRAINING_IMAGES = 1297  # of 1,797; the other 500 are held out
DIGITS_SPLIT_SEED = 0


@dataclass(frozen=True)
class Example:
    image_id: str
    image: UInt8[np.ndarray, "c h w"]
    label: int


def digits(split: Split) -> list[Example]:
    """scikit-learn's 1,797 handwritten digits (8x8, grey): a fixed, seeded split, in shuffled order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(images))
    chosen = order[:DIGITS_TRAINING_IMAGES] if split == "train" else order[DIGITS_TRAINING_IMAGES:]
    return [Example(f"digits-{index:04d}", images[index], int(bunch.target[index])) for index in chosen]


DATASETS: dict[str, Callable[[Split], list[Example]]] = {"digits": digits}


def load_dataset(name: str, *, split: Split, limit: int | None = None) -> list[Example]:
    """The first `limit` examples of a dataset's split, all of them without a limit."""
    return DATASETS[name](split)[:limit]


def check_examples(examples: Sequence[Example], *, image_shape: tuple[int, ...], num_classes: int, noise: str) -> None:
    """Refuses data that do not fit the model or the noise.

    Raises:
        ValueError: no images, an id that occurs twice, an image of another shape or not of 8 bits, or a label out of
            range.
    """
    if not examples:
        raise ValueError("the dataset is empty: there is nothing to certify")
    seen: set[str] = set()
    for example in examples:
        if example.image_id in seen:
            raise ValueError(f"image id {example.image_id} occurs twice in the dataset")
        seen.add(example.image_id)
        if example.image.shape != image_shape:
            raise ValueError(
                f"image {example.image_id} has shape {example.image.shape} (channels, height, width), "
                f"the model takes {image_shape}; choose another model or dataset"
            )
        if example.image.dtype != np.uint8:
            remedy = "; integer noise is for 8-bit images" if noise == "integer" else ""
            raise ValueError(f"image {example.image_id} is {example.image.dtype}, images must have 8 bits{remedy}")
        if not 0 <= example.label < num_classes:
            raise ValueError(
                f"image {example.image_id} has label {example.label}, the model knows the classes "
                f"0 to {num_classes - 1}; choose another model or dataset"
            )


def dataset_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over ids, labels and pixels, in order."""
    digest = hashlib.sha256()
    for example in examples:
        header = f"{example.image_id}\n{example.label}\n{example.image.shape}\n"
        digest.update(header.encode() + example.image.tobytes())
    return digest.hexdigest()
