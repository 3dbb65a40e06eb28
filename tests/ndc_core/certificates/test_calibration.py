"""How often a certificate is wrong, over at least 100,000 simulated ones of each kind, where the truth is known.

The alpha is large, so that failures are many and their rate is known well. In each case the true limit is the
certificate's own at the true probability (or margin): a certificate above it is false. Run with -s to see the rates and
their 99 % confidence intervals.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from ndc_core.certificates import sequential
from ndc_core.certificates.certificate import Certificate, LipschitzTerms, Procedure, Tally, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.certificates.sequential import Sequential
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.scoring import predict
from ndc_core.classifiers.sift import SiftSpec
from ndc_core.noise.grid import GridSpec, build_grid
from ndc_core.noise.smoothing import LEVELS, IntegerNoise, rounded_gaussian_table
from ndc_core.noise.streams import DrawNoise
from pipeline.certificates.reduce import CertifiedImage, largest_of_each_image
from pipeline.certificates.stopping import Cell
from pipeline.declaration.units import WorkUnit
from pipeline.store.evidence import Evidence
from tests.support.fakes import GaussianDenoiser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SIMULATIONS, ALPHA, SIGMA = 100_000, 0.05, 0.25
SELECTION, ESTIMATION = 20, 200


def check_rate(name: str, false: int, total: int = SIMULATIONS, *, alpha: float = ALPHA, useful: bool = True) -> None:
    """At most alpha, beyond chance; and not zero, or the simulation could not have failed."""
    interval = binomtest(false, total).proportion_ci(0.99)
    print(
        f"\n{name}: {false:,} of {total:,} false, {false / total:.4f} "
        f"[{interval.low:.4f}, {interval.high:.4f}], alpha {alpha}"
    )
    assert interval.low <= alpha
    assert total >= SIMULATIONS
    if useful:
        assert false > 0, "a simulation in which nothing can go wrong proves nothing"


def halfspace_votes(margin: float, draws: int, *, seed: int, sigma: float = SIGMA, own_std: float = 0.0) -> np.ndarray:
    """Votes for class 1 of a half-space, the image `margin` inside it; own_std is the classifier's own noise."""
    generator = np.random.default_rng(seed)
    votes = np.empty((SIMULATIONS, draws), dtype=bool)
    for block in np.array_split(np.arange(SIMULATIONS), 50):
        seen = margin + sigma * generator.standard_normal((len(block), draws))
        votes[block] = seen + own_std * generator.standard_normal((len(block), draws)) > 0
    return votes


def true_limits(p: float, sigma: float = SIGMA) -> tuple[float, float]:
    """The largest sound radius for class 0 and for class 1, which has probability p."""
    return tuple(max(0.0, sigma * float(ndtri(share))) for share in (1 - p, p))  # type: ignore[return-value]


def cached(certificate: Callable[[Tally], Certificate]) -> Callable[[tuple, tuple], Certificate]:
    return lru_cache(maxsize=None)(lambda selection, looks: certificate(Tally(selection, looks)))


def count_false(
    method: Procedure, selection: np.ndarray, wins: np.ndarray, draws: int, limits: tuple[float, float]
) -> int:
    certify = cached(method.certificate)
    false = 0
    for chosen, won in zip(selection.tolist(), wins.tolist(), strict=True):
        certificate = certify((SELECTION - chosen, chosen), ((draws - won, won),))
        top = int(chosen > SELECTION - chosen)
        false += certificate.radius > limits[top]
    return false


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4])
def test_cohen(margin: float) -> None:
    votes = halfspace_votes(margin, SELECTION + ESTIMATION, seed=1)
    method = Cohen(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=ESTIMATION))
    limits = true_limits(float(ndtr(margin / SIGMA)))
    assert limits[1] == pytest.approx(margin), "the distance to the half-space's border"
    false = count_false(method, votes[:, :SELECTION].sum(1), votes[:, SELECTION:].sum(1), ESTIMATION, limits)
    check_rate(f"cohen, true radius {margin}", false)


def test_cohen_with_a_randomized_base_classifier() -> None:
    """The classifier adds noise of its own: what is smoothed is its probability of voting for a class."""
    margin, own_std = 0.2, 0.2
    votes = halfspace_votes(margin, SELECTION + ESTIMATION, seed=2, own_std=own_std)
    method = Cohen(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=ESTIMATION))
    limits = true_limits(float(ndtr(margin / np.hypot(SIGMA, own_std))))
    false = count_false(method, votes[:, :SELECTION].sum(1), votes[:, SELECTION:].sum(1), ESTIMATION, limits)
    check_rate("cohen, randomized base classifier", false)


def test_cohen_with_integer_noise() -> None:
    """One pixel at level 60, a classifier that asks whether it is at least 40: rounding is part of the truth."""
    noise = IntegerNoise(SIGMA)
    generator = np.random.default_rng(3)
    table = rounded_gaussian_table(SIGMA).thresholds
    p = 1 - int(table[40 - 60 + len(table) // 2 - 1]) / 2**64  # P(60 + n >= 40)
    assert p == pytest.approx(float(ndtr((60 - 40 + 0.5) / (LEVELS * SIGMA))))
    wins = np.concatenate(
        [(60 + noise.draw(generator, (SIMULATIONS // 50, SELECTION + ESTIMATION)) >= 40) for _ in range(50)]
    )
    method = Cohen(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=ESTIMATION, distance=noise.distance(1)))
    false = count_false(method, wins[:, :SELECTION].sum(1), wins[:, SELECTION:].sum(1), ESTIMATION, true_limits(p))
    check_rate("cohen, integer noise", false)


RADII = (0.1, 0.25)
SEQUENTIAL = Sequential(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=1000, radii=RADII))


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 simulations ask the same questions of the statistics: each is computed once."""
    for name in ("log_wealth_above", "probability_lower"):
        monkeypatch.setattr(sequential, name, lru_cache(maxsize=None)(getattr(sequential, name)))


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("margin", [0.1, 0.25])
def test_sequential(margin: float) -> None:
    """The true radius is one of the declared ones: stopping as soon as it is proved is where it could go wrong."""
    votes = halfspace_votes(margin, SEQUENTIAL.looks[-1], seed=4)
    wins = np.stack([votes[:, :end].sum(1) for end in SEQUENTIAL.looks], axis=1).tolist()
    method, false, drawn = SEQUENTIAL, 0, 0
    for path in wins:
        for reached, end in enumerate(method.looks, start=1):
            looks = tuple((at - won, won) for at, won in zip(method.looks[:reached], path, strict=False))
            if end == method.looks[-1] or method.decided(Tally((0, 1), looks)):
                break
        false += method.certificate(Tally((0, 1), looks)).radius > margin
        drawn += end
    check_rate(f"sequential, true radius {margin}, {drawn / SIMULATIONS:.0f} votes each", false)


def evidence_of(unit: WorkUnit, votes: np.ndarray) -> Evidence:
    won = int(votes[unit.draw_start : unit.draw_stop].sum())
    counts = {c: n for c, n in ((0, unit.draws - won), (1, won)) if n}
    return Evidence(unit, counts, 0, 0.0, 0.0, "cpu")


@pytest.mark.usefixtures("remembered")
def test_sequential_across_interruptions() -> None:
    """Each image is interrupted at a random unit, forgotten, and taken up again from its evidence in any order."""
    margin, per_unit = 0.25, 120
    outcomes = halfspace_votes(margin, SEQUENTIAL.looks[-1], seed=5)
    method, generator = SEQUENTIAL, np.random.default_rng(6)
    stops = generator.integers(0, 12, SIMULATIONS)
    units = [WorkUnit("a", 1, SIGMA, "selection", 0, SELECTION)]
    for begin, end in zip((0, *method.looks), method.looks, strict=False):
        starts = range(begin, end, per_unit)
        units += [WorkUnit("a", 1, SIGMA, "estimation", s, min(end, s + per_unit)) for s in starts]
    false = interrupted = 0
    for votes, stop in zip(outcomes, stops.tolist(), strict=True):
        cell, published = Cell("a", SIGMA, method, SELECTION, 2), []
        for index, unit in enumerate(units):
            if index == stop:
                interrupted += 1
                cell = Cell("a", SIGMA, method, SELECTION, 2)
                for item in reversed(published):
                    cell.take(item)
            if unit.phase == "estimation" and unit.draw_stop > cell.state().needed:
                break
            source = np.ones(SELECTION, dtype=bool) if unit.phase == "selection" else votes
            published.append(evidence_of(unit, source))
            cell.take(published[-1])
        false += method.certificate(cell.finished(resume_with="")).radius > margin
    check_rate(f"sequential, {interrupted:,} interrupted", false)


SIGMAS = (0.15, 0.25, 0.4)


def rate_of_maximum(alpha_each: float, margin: float = 0.25) -> int:
    """A half-space has the same true radius at every noise level, so the maximum exceeds it whenever any level does."""
    certificates = []
    for index, sigma in enumerate(SIGMAS):
        votes = halfspace_votes(margin, ESTIMATION, seed=10 + index, sigma=sigma).sum(1)
        certify = cached(Cohen(Terms(sigma_pixel=sigma, alpha=alpha_each, votes=ESTIMATION)).certificate)
        certificates.append([certify((0, 1), ((ESTIMATION - won, won),)) for won in votes.tolist()])
    items = [
        CertifiedImage(str(image), 1, certificate, (), 0, 0.0)
        for level in certificates
        for image, certificate in enumerate(level)
    ]
    return sum(item.certificate.radius > margin for item in largest_of_each_image(items))


def test_maximum_over_sigmas_shares_alpha() -> None:
    check_rate("maximum over 3 sigmas, alpha / 3 each", rate_of_maximum(ALPHA / 3))
    unshared = rate_of_maximum(ALPHA)
    print(f"\nwith alpha each instead: {unshared / SIMULATIONS:.4f} false")
    assert binomtest(unshared, SIMULATIONS).proportion_ci(0.99).low > ALPHA, "rule S5 is needed"


def test_lipschitz() -> None:
    """Two rivals whose losses at each draw take one of two values together, so the mean margins are exact.

    Sampling stops by the certificate's own rule.
    """
    grid = GridSpec(3, 2.0, "log", 0.5)
    method = Lipschitz(Terms(sigma_pixel=0.0, alpha=ALPHA, votes=761, lipschitz=LipschitzTerms(grid, precision=0.3)))
    largest, share = -method.lowest_margin, 0.6
    assert len(build_grid(grid, tau_model=0.0).level) == 1
    truth = 0.5 * largest * (2 * share - 1)  # of the closer rival
    outcomes = np.random.default_rng(7).random((SIMULATIONS, method.looks[-1])) < share
    wins = np.stack([outcomes[:, :end].sum(1) for end in method.looks], axis=1)

    def tally_of(end: int, won: int) -> Tally:
        sign = np.where(np.arange(end) < won, 1.0, -1.0)[:, None]
        scores = sign * largest * np.array([[0.0, -0.5, -0.8]])
        return Tally([1, 0, 0], [[end, 0, 0]], np.array([[1.0, 0.0, 0.0]]), scores)

    decided = lru_cache(maxsize=None)(lambda end, won: method.decided(tally_of(end, won)))
    lower = lru_cache(maxsize=None)(lambda end, won: method.certificate(tally_of(end, won)).margin_lower)
    false = 0
    for path in wins.tolist():
        for end, won in zip(method.looks, path, strict=True):
            if end == method.looks[-1] or decided(end, won):
                break
        false += lower(end, won) > truth
    check_rate("lipschitz, 2 rivals", false)


def test_cohen_with_sift_and_refine() -> None:
    """The real classifier between two classes of three: by symmetry each has probability below 1/2, so the true radius
    is 0 and every certificate is false."""
    means = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.0, 1.0]])
    denoiser = GaussianDenoiser(means, 0.05)
    sift = SiftSpec(GridSpec(4, 1.5, "log"), threshold_per_dim=0.05, keep=1)
    grid = GridSpec(4, 1.5, "log")
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=grid, sift=sift, rows_per_pass=2**17)
    generator, selection, estimation = np.random.default_rng(8), 9, 41
    method = Cohen(Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=estimation))
    certify = cached(method.certificate)
    false = sifted = 0
    blocks, each = 50, SIMULATIONS // 50
    for _ in range(blocks):
        draws = each * (selection + estimation)
        z = 2 * SIGMA * generator.standard_normal((draws, 1, 1, 2))
        noise = DrawNoise(
            input=z,
            refine=generator.standard_normal((draws, grid.steps, 1, 1, 2), dtype=np.float32),
            sift=generator.standard_normal((draws, sift.grid.steps, 1, 1, 2), dtype=np.float32),
        )
        prediction = predict(classifier, z, tau_model=2 * SIGMA, noise=noise)
        sifted += int((~np.isfinite(prediction.scores)).any(axis=1).sum())
        votes = prediction.winners.reshape(each, -1)
        counts = np.stack([[(part == c).sum(1) for c in range(3)] for part in np.split(votes, [selection], axis=1)])
        for chosen, won in zip(counts[0].T.tolist(), counts[1].T.tolist(), strict=True):
            false += certify(tuple(chosen), (tuple(won),)).radius > 0
    assert sifted > 0.5 * SIMULATIONS * (selection + estimation), "the sift must be at work"
    check_rate("cohen, sift-and-refine, true radius 0", false)
