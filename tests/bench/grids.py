"""Judges what `ndc diagnose models/digits digits` proposed on held-out digits, which it never saw.

python -m tests.bench.grids runs/diagnose-digits/diagnosis.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from ndc_core.analysis.diagnosis import candidate_levels, measure
from ndc_core.analysis.grid_search import GridSearch
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec
from ndc_core.space import sigma_to_model
from tests.support.small_runs import digits

EVERY, DRAWS, SEED = 2, 3, 5


def main(written: Path) -> None:
    written_down = json.loads(written.read_text())
    sigmas = tuple(written_down["sigma_pixel"])
    grid = GridSpec(levels=candidate_levels(sigmas))
    classifier = DiffusionClassifier(
        load_denoiser("models/digits"), written_down["classifier"], grid, weight=written_down["weight"]
    )
    examples = digits("test")[::EVERY]
    images, labels = (
        np.stack([example.image for example in examples]),
        np.array([example.label for example in examples]),
    )
    (measured,) = measure([classifier], images, labels, sigma_pixel=sigmas, draws=DRAWS, seed=SEED)
    search = GridSearch(classifier, measured, tuple(map(sigma_to_model, sigmas)), SEED)
    everyone = np.arange(len(labels))
    reference = search.accuracy_of_images(measured.levels, everyone)
    print(f"{len(labels)} held-out digits, {DRAWS} draws each; accuracy (%), and how far it is from that of all levels")
    for name in ("chosen", "evenly_spaced"):
        for choice in written_down[name]:
            accuracy = search.accuracy_of_images(tuple(choice["levels"]), everyone)
            behind = accuracy - reference
            error = behind.std(axis=0, ddof=1) / np.sqrt(len(behind))
            cells = [
                f"{100 * value:5.1f} ({100 * gap:+.1f} ± {100 * width:.1f})"
                for value, gap, width in zip(accuracy.mean(axis=0), behind.mean(axis=0), error, strict=True)
            ]
            print(f"{name:13} {len(choice['levels']) - 1:3}", *cells, sep="   ")
    print(f"{'all':13} {len(measured.levels) - 1:3}", *(f"{100 * value:5.1f}" for value in reference.mean(axis=0)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
