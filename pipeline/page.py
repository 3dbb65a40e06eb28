"""The self-contained HTML page of a run."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from matplotlib.image import imsave

from ndc_core.grid import GridSpec
from ndc_core.randomness import draw_generator
from ndc_core.smoothing import NOISES
from ndc_core.space import bytes_to_pixels, model_to_pixels
from ndc_core.walks import WALKS, stations_of
from pipeline.reduce import CertifiedImage
from pipeline.store import StoredImage

CLASSES_SHOWN = 3


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image with channels first and values in [0, 1] as PNG; what lies outside is clipped."""
    channels_last = np.moveaxis(pixels.clip(0, 1), 0, -1)
    stream = io.BytesIO()
    rgb = channels_last if channels_last.shape[2] == 3 else channels_last.repeat(3, axis=2)
    imsave(stream, np.ascontiguousarray(rgb), format="png")
    return stream.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()


def noisy_pixels(item: CertifiedImage, pixels: np.ndarray, *, law: dict[str, Any]) -> np.ndarray:
    """The image as the first estimation draw saw it."""
    sigma_pixel = item.certificate.sigma_pixel
    generator = draw_generator(seed=law["seed"], image_id=item.image_id, phase="estimation", draw=0)
    if law["classifier"].get("one_path"):
        stations = stations_of(GridSpec(**law["classifier"]["grid"]), law["sigma_pixel"])
        drawn = WALKS[law["noise"]](stations).draw(generator, pixels.shape)[stations.index(sigma_pixel)]
        input_noise = NOISES[law["noise"]](stations[0])
    else:
        input_noise = NOISES[law["noise"]](sigma_pixel)
        drawn = input_noise.draw(generator, pixels.shape)
    return model_to_pixels(input_noise.add(pixels, drawn[None])[0])


def gallery_card(item: CertifiedImage, pixels: np.ndarray, *, law: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of one image at one noise level."""
    certificate, total = item.certificate, max(1, sum(item.counts))
    order = sorted(range(len(item.counts)), key=lambda c: -item.counts[c])[:CLASSES_SHOWN]
    outcome = "right" if item.holds(0.0) else "wrong"
    return {
        "image_id": item.image_id,
        "label": item.label,
        "sigma": f"{certificate.sigma_pixel:g}",
        "outcome": "abstained" if certificate.predicted is None else outcome,
        "predicted": certificate.predicted,
        "radius": f"{int(certificate.radius * 1e4) / 1e4:.4f}",
        "clean": data_uri(bytes_to_pixels(pixels)),
        "noisy": data_uri(noisy_pixels(item, pixels, law=law)),
        "votes": [
            {"class": c, "count": item.counts[c], "percent": 100 * item.counts[c] / total}
            for c in order
            if item.counts[c]
        ],
    }


def html_page(
    *,
    title: str,
    table: tuple[list[str], list[list[str]]],
    figure: str,
    alpha: float,
    scope: str,
    attacked: bool,
    certified: Sequence[CertifiedImage],
    images: Sequence[StoredImage],
    law: dict[str, Any],
) -> str:
    """One page that needs no other file: table, curve, what was declared, and a gallery of images."""
    shown = {image.image_id: image.pixels for image in images if image.pixels is not None}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(
        title=title,
        header=table[0],
        rows=table[1],
        figure=figure[figure.index("<svg") :],
        alpha=alpha,
        scope=scope,
        attacked=attacked,
        law=law,
        cards=[gallery_card(item, shown[item.image_id], law=law) for item in certified if item.image_id in shown],
    )
