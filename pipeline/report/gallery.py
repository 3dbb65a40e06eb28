"""The images of a report's page: what was found about each, and pictures that fit into a budget of bytes."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ndc_core.noise.draw_generators import draw_generator
from ndc_core.noise.shared_path import PATH_NOISES, sigmas_on_path
from ndc_core.noise.smoothing import NOISES
from ndc_core.space import bytes_to_pixels, model_to_pixels
from pipeline.certificates.files import cut
from pipeline.certificates.reduce import CertifiedImage
from pipeline.data.decoding import webp_bytes
from pipeline.declaration.declaration import Declaration
from pipeline.store.run_store import StoredImage, spread

MOST_IMAGES = 500
MOST_CARDS = 1500
CLASSES_LISTED = 50  # of one image's votes; a page of a thousand classes would grow beyond its budget
LONGEST_NAME = 40
UNITS_OF_A_SIGMA = 32  # noise is stored as 128 + 32 times itself in units of sigma
QUALITIES = ((1, None), (8, 85), (16, 70), (32, 50))  # step of the noise, and WebP's quality of the clean picture
SAMPLED = 8

Item = tuple[CertifiedImage, np.ndarray]


@dataclass(frozen=True)
class Coding:
    """How pictures are made smaller: every `stride`-th pixel of a row and column, noise in steps of `step` units."""

    stride: int
    step: int
    quality: int | None

    @property
    def note(self) -> str:
        """What the page says about it."""
        pixels = "" if self.stride == 1 else f"one of every {self.stride} rows and columns of pixels is shown, "
        clean = f"clean pictures are stored {'exactly' if self.quality is None else 'with loss'}"
        largest = 127 // self.step * self.step / UNITS_OF_A_SIGMA
        step = "whole sigmas" if self.step == UNITS_OF_A_SIGMA else f"1/{UNITS_OF_A_SIGMA // self.step} of sigma"
        return f"For display, {pixels}{clean}, and noise is rounded to {step} and cut at {largest:.2g} sigma."


def noisy_pixels(item: CertifiedImage, pixels: np.ndarray, *, declaration: Declaration) -> np.ndarray:
    """The image as the first estimation draw saw it."""
    sigma_pixel, noise = item.certificate.sigma_pixel, NOISES[declaration.noise]
    generator = draw_generator(seed=declaration.seed, image_id=item.image_id, phase="estimation", draw=0)
    if declaration.one_path:
        path_sigmas = sigmas_on_path(declaration.grid, declaration.sigma_pixel)
        # A path is drawn from its lowest level up: the rest of it changes nothing.
        reached = path_sigmas[: path_sigmas.index(sigma_pixel) + 1]
        drawn = PATH_NOISES[declaration.noise](reached).draw(generator, pixels.shape)[-1]
    else:
        drawn = noise(sigma_pixel).draw(generator, pixels.shape)
    return model_to_pixels(noise.add(pixels, drawn[None])[0])


def noise_in_sigmas(item: CertifiedImage, pixels: np.ndarray, *, declaration: Declaration) -> np.ndarray:
    """What the first estimation draw added."""
    sigma_pixel = item.certificate.sigma_pixel
    added = noisy_pixels(item, pixels, declaration=declaration) - bytes_to_pixels(pixels)
    return (added / sigma_pixel if sigma_pixel else np.zeros_like(added)).astype(np.float32)


def noise_bytes(noise: np.ndarray, step: int) -> np.ndarray:
    """128 + 32 times the noise, rounded to the step."""
    most = 127 // step
    return (128 + step * np.rint(noise * UNITS_OF_A_SIGMA / step).clip(-most, most)).astype(np.uint8)


def shown_items(certified: Sequence[CertifiedImage], images: Sequence[StoredImage]) -> list[Item]:
    """The certificates that a page has room for, with pixels: of images spread evenly over those with pixels."""
    pixels_of = {image.image_id: image.pixels for image in images if image.pixels is not None}
    levels = len({item.certificate.sigma_pixel for item in certified})
    ids = list(pixels_of)
    chosen = {ids[index] for index in spread(len(ids), min(MOST_IMAGES, MOST_CARDS // levels))}
    return [(item, pixels_of[item.image_id]) for item in certified if item.image_id in chosen]


def card(item: CertifiedImage, *, image: int) -> dict[str, Any]:
    """What the page tells of one image at one noise level; classes without a vote are left out."""
    certificate = item.certificate
    most = sorted((c for c, count in enumerate(item.counts) if count), key=lambda c: -item.counts[c])[:CLASSES_LISTED]
    bound = certificate.margin_lower if certificate.p_lower is None else certificate.p_lower
    return {
        "image": image,
        "sigma": f"{certificate.sigma_pixel:g}",
        "predicted": certificate.predicted,
        "radius": cut(certificate.radius),
        "bound": None if bound is None else cut(bound),
        "votes": [[c, item.counts[c]] for c in sorted(most)],
        "total": sum(item.counts),
        "evaluations": item.evaluations,
        "seconds": round(item.seconds, 2),
    }


def names_of(cards: Sequence[dict[str, Any]], labels: Iterable[int], class_names: Sequence[str]) -> dict[int, str]:
    """The names of the classes that are shown, cut where they are long; empty where there are none."""
    voted = {class_id for card in cards for class_id, _ in card["votes"]}
    shown = voted.union(labels, range(CLASSES_LISTED), (card["predicted"] for card in cards))
    return {
        class_id: name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        for class_id, name in enumerate(class_names)
        if class_id in shown
    }


def gallery_data(items: Sequence[Item], *, images: int, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Everything about the images of a page, except the pictures."""
    labels = {item.image_id: item.label for item, _ in items}
    index_of = {image_id: index for index, image_id in enumerate(labels)}
    cards = [card(item, image=index_of[item.image_id]) for item, _ in items]
    return {
        "names": names_of(cards, labels.values(), class_names),
        "classes": len(items[0][0].counts) if items else 0,
        "bound": "margin" if items and items[0][0].certificate.p_lower is None else "probability",
        "of": images,
        "images": [{"id": image_id, "label": label} for image_id, label in labels.items()],
        "cards": cards,
    }


def codings(side: int) -> Iterator[Coding]:
    """From exact pictures down to ever smaller ones."""
    for stride, (step, quality) in product(range(1, side + 1), QUALITIES):
        yield Coding(stride, step, quality)


def encoded(pixels: np.ndarray, quality: int | None = None) -> str:
    return base64.b64encode(webp_bytes(np.ascontiguousarray(pixels), quality=quality)).decode()


def encode_pictures(cleans: Iterable[np.ndarray], noises: Iterable[np.ndarray], coding: Coding) -> dict[str, Any]:
    kept = (slice(None), *[slice(None, None, coding.stride)] * 2)
    return {
        "note": coding.note,
        "clean": [encoded(pixels[kept], coding.quality) for pixels in cleans],
        "noise": [encoded(noise_bytes(noise[kept], coding.step)) for noise in noises],
    }


def picture_data(items: Sequence[Item], *, budget: int, declaration: Declaration) -> dict[str, Any]:
    """The pictures of a page in at most `budget` bytes of JSON, with as little loss as that allows: clean ones of all
    images, and noise of each card, or of each image (`shared`) where all its levels scale the same noise."""
    if not items:
        return {"note": "", "shared": True, "clean": [], "noise": []}
    of_image = {item.image_id: (item, pixels) for item, pixels in items}
    cleans = [pixels for _, pixels in of_image.values()]
    shared = not declaration.one_path
    drawn = list(of_image.values()) if shared else list(items)

    def noises(indices: Iterable[int]) -> Iterator[np.ndarray]:
        return (noise_in_sigmas(*drawn[index], declaration=declaration) for index in indices)

    sampled = spread(len(cleans), SAMPLED)
    some_cleans = [cleans[index] for index in sampled]
    some_noises = list(noises(spread(len(drawn), len(sampled) * len(drawn) // len(cleans))))
    side = max(cleans[0].shape[1:])
    for coding in codings(side):
        estimate = size_of(encode_pictures(some_cleans, some_noises, coding)) * len(cleans) / len(sampled)
        if estimate > budget and coding.stride < side:
            continue
        encoded = encode_pictures(cleans, noises(range(len(drawn))), coding)
        if size_of(encoded) <= budget:
            break
    return {"shared": shared, **encoded}


def size_of(data: dict[str, Any]) -> int:
    return len(json.dumps(data))
