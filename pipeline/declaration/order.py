"""The order in which a run takes its images."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Literal, Protocol, TypeVar

Order = Literal["data", "random"]


class Named(Protocol):
    @property
    def image_id(self) -> str: ...


Image = TypeVar("Image", bound=Named)


def in_order(images: Sequence[Image], order: Order, *, seed: int) -> list[Image]:
    """The images as a run takes them: in the order of the data, or in one drawn from the seed. The place that is drawn
    for an image does not depend on the others, so a run that has grown takes its earlier images in the same order."""
    if order == "data":
        return list(images)
    return sorted(images, key=lambda image: hashlib.blake2b(f"{seed} {image.image_id}".encode()).digest())


def are_a_sample(
    complete: Collection[str], begun: Collection[str], images: Sequence[Named], order: Order, *, seed: int
) -> bool:
    """Whether the complete images are all that were begun, and the first of an order that was drawn: then they are a
    random sample, whatever their votes. If a begun image is not complete, cheap images are among them too often."""
    first = {image.image_id for image in in_order(images, order, seed=seed)[: len(complete)]}
    return order == "random" and first == set(complete) == set(begun)
