"""The self-contained HTML page of a run."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from matplotlib.image import imsave

from ndc_core.randomness import draw_noise
from ndc_core.space import bytes_to_pixels
from pipeline.reduce import CertifiedImage
from pipeline.store import StoredImage

CLASSES_SHOWN = 3


def data_uri(pixels: np.ndarray) -> str:
    """An image with channels first and values in [0, 1] as a PNG data URI; what lies outside is clipped."""
    channels_last = np.moveaxis(pixels.clip(0, 1), 0, -1)
    stream = io.BytesIO()
    rgb = channels_last if channels_last.shape[2] == 3 else channels_last.repeat(3, axis=2)
    imsave(stream, np.ascontiguousarray(rgb), format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def noisy_pixels(item: CertifiedImage, pixels: np.ndarray, *, seed: int) -> np.ndarray:
    """The image as the first estimation draw saw it."""
    noise = draw_noise(
        seed=seed,
        image_id=item.image_id,
        phase="estimation",
        draws=[0],
        image_shape=pixels.shape,
        refine_steps=0,
        sift_steps=0,
    )
    return bytes_to_pixels(pixels) + item.certificate.sigma_pixel * noise.input[0]


def gallery_card(item: CertifiedImage, pixels: np.ndarray, *, seed: int) -> dict[str, Any]:
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
        "radius": f"{int(certificate.radius * 1000) / 1000:.3f}",
        "clean": data_uri(bytes_to_pixels(pixels)),
        "noisy": data_uri(noisy_pixels(item, pixels, seed=seed)),
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
        certificate={"alpha": certified[0].certificate.alpha, "method": certified[0].certificate.method},
        law=law,
        cards=[
            gallery_card(item, shown[item.image_id], seed=law["seed"]) for item in certified if item.image_id in shown
        ],
    )
