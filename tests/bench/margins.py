"""Which lower bound on a margin is tighter: betting, or empirical Bernstein?

    .venv/bin/python -m tests.bench.margins [--images 12]

Margins of the embedded digits model (preset lipschitz, capped and plain), the closest rival of each image. For each
number of draws: how far each bound lies below the mean of the draws, as a share of that mean, median over the images.
Betting is `smallest_mean_lower`; the two of empirical Bernstein are Maurer and Pontil's (2009), for
one number of draws fixed in advance, and the predictable plug-in sequence of Waudby-Smith and Ramdas (2023, Theorem 2),
which holds at all of them as betting does.
"""

import math

import click
import numpy as np

from ndc_core.certificates.confidence_sequences import smallest_mean_lower
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.voting import count_votes
from pipeline.declaration.declaration import declare
from pipeline.declaration.toml_files import load_config
from tests.bench.bare import MODEL
from tests.support.small_runs import digits, listing_of

DRAWS, ALPHA = (100, 300, 1000, 3000), 0.001


def maurer_pontil(x: np.ndarray, *, lowest: float, highest: float) -> float:
    """Empirical Bernstein, valid at this number of draws only."""
    n, log = len(x), math.log(2 / ALPHA)
    slack = math.sqrt(2 * x.var(ddof=1) * log / n) + 7 * (highest - lowest) * log / (3 * (n - 1))
    return float(x.mean()) - slack


def plug_in_bernstein(x: np.ndarray, *, lowest: float, highest: float) -> float:
    """Empirical Bernstein, valid at all numbers of draws."""
    y = (x - lowest) / (highest - lowest)
    t = np.arange(1, len(y) + 1)
    means = (0.5 + y.cumsum()) / (t + 1)
    variances = (0.25 + ((y - means) ** 2).cumsum()) / (t + 1)
    before = np.append(0.25, variances[:-1])
    stakes = np.minimum(np.sqrt(2 * math.log(1 / ALPHA) / (before * t * np.log(t + 1))), 0.5)
    losses = 4 * (y - np.append(0.5, means[:-1])) ** 2 * (-np.log1p(-stakes) - stakes) / 4
    bound = ((stakes * y).sum() - math.log(1 / ALPHA) - losses.sum()) / stakes.sum()
    return lowest + (highest - lowest) * float(bound)


@click.command()
@click.option("--images", default=12, show_default=True)
def main(images: int) -> None:
    if not MODEL.is_dir():
        raise click.ClickException(f"{MODEL} is missing; run `make demo` first")
    examples = digits("test")[:images]
    for name, cap in (("capped at 0.2", 0.2), ("plain", 4.0)):
        config = load_config("lipschitz", [f"classifier.loss_cap={cap}"])
        method = declare(config, listing_of(examples), models={}).procedure(0.0)
        assert isinstance(method, Lipschitz)
        denoiser = load_denoiser(MODEL)
        chosen = config.classifier
        classifier = DiffusionClassifier(
            denoiser, "dc", grid=chosen.grid, weight=chosen.weight, loss_cap=cap, rows_per_pass=512
        )
        bounds = {"betting": [], "plug-in Bernstein": [], "Maurer-Pontil": []}
        for example in examples:
            scores = count_votes(
                classifier,
                example.image,
                sigma_pixel=0.0,
                noise="none",
                seed=0,
                image_id=example.image_id,
                phase="estimation",
                draws=range(DRAWS[-1]),
                keep_scores=True,
            ).scores
            margins = scores[:, [example.label]] - np.delete(scores, example.label, axis=1)
            x = margins[:, margins.mean(axis=0).argmin()]
            ends = {"lowest": method.lowest_margin, "highest": -method.lowest_margin}
            for n in DRAWS:
                bounds_of_kinds = {
                    "betting": smallest_mean_lower(x[:n, None], lowest=method.lowest_margin, alpha=ALPHA),
                    "plug-in Bernstein": plug_in_bernstein(x[:n], **ends),
                    "Maurer-Pontil": maurer_pontil(x[:n], **ends),
                }
                for kind, bound in bounds_of_kinds.items():
                    bounds[kind].append((n, (x[:n].mean() - bound) / x[:n].mean()))
        click.echo(f"\n{name}: distance of the bound below the mean, as a share of the mean")
        for kind, pairs in bounds.items():
            shares = [np.median([share for n, share in pairs if n == wanted]) for wanted in DRAWS]
            click.echo(
                f"  {kind:18}" + "".join(f"  n={n}: {share:8.3f}" for n, share in zip(DRAWS, shares, strict=True))
            )


if __name__ == "__main__":
    main()
