"""Noise of DC's steps on lattices that contain the 8-bit grid: its law, and what the certificate may claim."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import chisquare
from torch import Tensor

from ndc_core.certificates.certificate import Certificate, LipschitzTerms, Tally, Terms
from ndc_core.certificates.lipschitz import Lipschitz, margin_constant_pixel, rounding_of_margin
from ndc_core.certification import certify
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.scoring import scores
from ndc_core.classifiers.sift import SiftSpec
from ndc_core.noise.grid import GridSpec, build_grid, elbo_weight
from ndc_core.noise.lattice import STEPS_OF_A_SIGMA, LatticeNoise, lattice_distance, noisy_images
from ndc_core.noise.smoothing import rounded_gaussian_table
from ndc_core.noise.streams import DrawNoise
from ndc_core.space import pixels_to_model
from ndc_core.voting import count_votes
from pipeline.declaration.declaration import Declaration, declare
from pipeline.declaration.toml_files import load_config
from tests.support.small_runs import digits, listing_of

ONE_LEVEL = GridSpec(levels=(0.5, 1.0))  # one term, at sigma_model 1
NAMED = {"seed": 0, "image_id": "x", "phase": "estimation"}


@dataclass
class ReadsLowBits:
    """Knows the image BRIGHT by a bit that floating-point noise leaves of it, and favours class 0 for it.

    Noise below -2 has no part smaller than 2^-22. Where it took a bright pixel to between -2 and -1.2, the bit of 2^-23
    is that of the pixel.
    """

    image_shape: tuple[int, int, int] = (1, 8, 8)
    num_classes: int = 2

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        tells = (z > -2) & (z < -1.2)
        known = (tells & (last_bit(z) == last_bit(torch.tensor(model(BRIGHT)) - 2.5))).flatten(1).any(dim=1)
        favoured = torch.where(known, label[:, 0], label[:, 1])
        return (favoured - 0.1).view(-1, 1, 1, 1).expand_as(z)


BRIGHT = 242
LEAKING = GridSpec(levels=(1.0, 2.0))


def model(grey: int) -> np.float32:
    return np.float32(2 * grey / 255 - 1)


def last_bit(z: Tensor) -> Tensor:
    return (z.float().double() * 2**23).remainder(2)


def leaking_classifier() -> DiffusionClassifier:
    return DiffusionClassifier(ReadsLowBits(), "dc", grid=LEAKING, loss_cap=1.0, rows_per_pass=500)


def certificate_of(image: np.ndarray) -> Certificate:
    terms = Terms(
        sigma_pixel=0.0,
        alpha=0.001,
        votes=1000,
        scope="8-bit images",
        lipschitz=LipschitzTerms(LEAKING, loss_cap=1.0, dimension=64),
    )
    named = {"sigma_pixel": 0.0, "noise": "none", "seed": 0, "image_id": "x", "keep_scores": True}
    selection, estimation = (
        count_votes(leaking_classifier(), image, phase=phase, draws=range(votes), **named)
        for phase, votes in (("selection", 50), ("estimation", 1000))
    )
    tally = Tally(selection.votes.tolist(), [estimation.votes.tolist()], selection.scores, estimation.scores)
    return Lipschitz(terms).certificate(tally)


def test_a_network_that_reads_low_bits_is_not_certified_beyond_an_image_where_its_class_changes() -> None:
    bright, darker = (np.full((1, 8, 8), grey, np.uint8) for grey in (BRIGHT, BRIGHT - 1))
    refine = np.random.default_rng(0).standard_normal((300, 1, 1, 8, 8), dtype=np.float32)
    leaked = [
        scores(leaking_classifier(), z, tau_model=0.0, noise=DrawNoise(z, refine, refine[:, :0])).mean(axis=0)
        for z in (np.full((300, 1, 8, 8), model(grey)) for grey in (BRIGHT, BRIGHT - 1))
    ]
    assert [int(of_image.argmax()) for of_image in leaked] == [0, 1], "floating-point noise tells the two apart"
    of_bright, of_darker = certificate_of(bright), certificate_of(darker)
    distance = 8 / 255
    assert of_bright.radius > 5 * distance
    assert of_darker.radius > 5 * distance
    assert of_bright.predicted == of_darker.predicted == 0, "both have the same sums with noise, of other probabilities"


def test_the_score_of_an_8_bit_image_is_a_function_of_whole_numbers() -> None:
    """Noise moved by whole steps turns one image's noisy version into another's, bit for bit."""
    for sigma in (0.01, 0.6, 2.0):
        level = LatticeNoise(sigma)
        noise = level.draw(np.random.default_rng(0), (1000,))
        for k, moved in ((0, 255), (100, 101), (37, 200)):
            image, moved_image = (np.full(1000, value, np.uint8) for value in (k, moved))
            steps = (moved - k) << level.bits
            np.testing.assert_array_equal(level.add(moved_image, noise), level.add(image, noise + steps))
        nothing = np.zeros(256, int)
        np.testing.assert_allclose(
            level.add(np.arange(256).astype(np.uint8), nothing), pixels_to_model(np.arange(256) / 255), atol=1e-15
        )


@pytest.mark.parametrize("sigma", [0.004, 0.05, 0.6])
def test_draws_have_the_law_of_a_rounded_gaussian_on_the_lattice(sigma: float) -> None:
    level = LatticeNoise(sigma)
    scale = sigma * 127.5 * 2**level.bits
    assert scale >= STEPS_OF_A_SIGMA
    assert level.bits == 0 or scale < 2 * STEPS_OF_A_SIGMA, "no finer than it needs to be"
    image = np.full((1, 40, 40), 90, np.uint8)
    z = noisy_images(image, [1.0, sigma], draws=range(100), **NAMED)[:, 1].astype(float)
    steps = ((z + 1) / 2 * 255 - 90) * 2**level.bits
    whole = np.rint(steps)
    assert abs(steps - whole).max() < 0.01 * 2**level.bits, "single precision rounds, and nothing else does"
    edges = np.unique(np.rint(np.linspace(-2.5, 2.5, 40) * scale)) + 0.5
    counts = np.histogram(whole, [-np.inf, *edges, np.inf])[0]
    expected = np.diff(ndtr(np.array([-np.inf, *edges, np.inf]) / scale))
    assert chisquare(counts, expected * counts.sum()).pvalue > 1e-4
    assert whole.std() == pytest.approx(np.sqrt(scale**2 + 1 / 12), rel=0.01)


def test_draws_do_not_depend_on_their_company() -> None:
    image = digits("test", limit=1)[0].image
    together = noisy_images(image, (0.3, 0.9), draws=[4, 0, 7], **NAMED)
    np.testing.assert_array_equal(together[2], noisy_images(image, (0.3, 0.9), draws=[7], **NAMED)[0])
    assert not np.array_equal(together[0], together[1])


def test_the_stated_distance_covers_the_table() -> None:
    for sigma in (0.004, 0.3, 1.0):
        level = LatticeNoise(sigma)
        table = rounded_gaussian_table(sigma / 2, bits=level.bits)
        assert (len(table) + 1) / 2.0**64 <= level.distance(1) < 1.1 * (len(table) + 8) / 2.0**64
    assert lattice_distance((0.3, 1.0), 5) == 5 * (LatticeNoise(0.3).distance(1) + LatticeNoise(1.0).distance(1))


@dataclass(frozen=True)
class OfOnePixel:
    """Outputs at every whole number that the sum of one pixel and its noise can be: any bounded network."""

    outputs: np.ndarray  # classes, sums

    def scores(self, sigma: float, cap: float) -> np.ndarray:
        """The exact expected score of each class (for a weight of 1) at each of the 256 levels of grey."""
        level, half = LatticeNoise(sigma), self.outputs.shape[1] // 2
        sums = np.arange(-half, half)
        grey = np.arange(256)
        scale = sigma * 127.5 * 2**level.bits
        away = sums[None] - (grey << level.bits)[:, None]
        share = ndtr((away + 0.5) / scale) - ndtr((away - 0.5) / scale)
        losses = np.minimum((self.outputs[:, None] - (2 * grey / 255 - 1)[None, :, None]) ** 2, cap)
        return -(losses * share).sum(axis=2)


@pytest.mark.parametrize("cap", [4.0, 0.2])
@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.7])
def test_no_two_8_bit_images_have_margins_further_apart_than_the_constant_allows(sigma: float, cap: float) -> None:
    """All pairs of the 256 images of one pixel, exactly, for networks that are steps, noise, and parities."""
    generator, scale, half = np.random.default_rng(0), sigma * 127.5 * 2 ** LatticeNoise(sigma).bits, 2_000
    sums = np.arange(-half, half)
    edge = 128 << LatticeNoise(sigma).bits
    step = np.where(sums > edge, 1.0, -1.0)
    networks = [step, generator.choice([-1.0, 1.0], len(sums)), np.where(sums % 2, 1.0, -1.0), np.sin(sums / scale)]
    constant = margin_constant_pixel(np.array([sigma]), np.ones(1), dimension=1, loss_cap=cap)
    grey, largest = np.arange(256) / 255, 0.0
    for outputs in networks:
        scores = OfOnePixel(np.stack([outputs, -outputs])).scores(sigma, cap)
        margin = scores[0] - scores[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            slopes = abs(margin[:, None] - margin[None]) / abs(grey[:, None] - grey[None])
        largest = max(largest, float(np.nanmax(slopes)))
    assert 0.05 * constant < largest <= constant


def test_sampled_scores_are_those_of_the_exact_law() -> None:
    @dataclass
    class Parity:
        image_shape: tuple[int, int, int] = (1, 1, 1)
        num_classes: int = 2

        def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            third = ((z.double() + 1) * 127.5).round().remainder(3) == 0
            return torch.where(third, 1.0, -1.0) * (label[:, 0] - label[:, 1]).view(-1, 1, 1, 1)

    classifier = DiffusionClassifier(Parity(), "dc", grid=ONE_LEVEL, rows_per_pass=1000)
    drawn = count_votes(
        classifier,
        np.full((1, 1, 1), 90, np.uint8),
        sigma_pixel=0.0,
        noise="none",
        draws=range(4000),
        keep_scores=True,
        **NAMED,
    )
    outputs = np.where(np.arange(-3000, 3000) % 3 == 0, 1.0, -1.0)
    weight = elbo_weight(build_grid(ONE_LEVEL, tau_model=0.0))[0]
    exact = weight * OfOnePixel(np.stack([outputs, -outputs])).scores(1.0, 4.0)[:, 90]
    error = drawn.scores.std(axis=0) / np.sqrt(4000)
    assert (abs(drawn.scores.mean(axis=0) - exact) < 4.5 * error).all()


def test_the_certificate_pays_for_the_tables_and_for_single_precision() -> None:
    own = LipschitzTerms(ONE_LEVEL, loss_cap=0.2, dimension=64)
    terms = Terms(sigma_pixel=0.0, alpha=0.01, votes=500, lipschitz=own)
    exact, off = Lipschitz(terms), Lipschitz(replace(terms, distance=1e-3))
    scores = np.random.default_rng(0).normal((0.0, 5.0), 1.0, (500, 2))
    tally = Tally([0, 9], [[0, 500]], scores[:9], scores)
    lower = exact.certificate(tally).margin_lower - off.certificate(tally).margin_lower
    assert lower == pytest.approx(2e-3 * -exact.lowest_margin)
    weight = elbo_weight(build_grid(ONE_LEVEL, tau_model=0.0))
    assert exact.deviation == pytest.approx(rounding_of_margin(weight, dimension=64, loss_cap=0.2))
    assert 0 < exact.deviation < 1e-5 * -exact.lowest_margin


def test_computed_losses_stay_within_the_stated_rounding() -> None:
    generator = np.random.default_rng(0)
    h, k = generator.uniform(-1, 1, (200, 64)).astype(np.float32), generator.integers(0, 256, (200, 64))
    z = torch.from_numpy(2 * (k / 255) - 1)
    computed = (torch.from_numpy(h) - z.float()).square().sum(1, dtype=torch.float64)
    exact = (torch.from_numpy(h).double() - z).square().sum(1)
    assert (2 * (computed - exact).abs() <= rounding_of_margin(np.ones(1), dimension=64, loss_cap=None)).all()


def law(*assignments: str) -> Declaration:
    return declare(load_config("lipschitz", list(assignments)), listing_of(digits("test", limit=1)), models={})


def test_the_scope_is_8_bit_images_and_that_of_votes_with_float_steps_says_so() -> None:
    declared = law()
    terms = declared.procedure(0.0).terms
    assert terms.scope == "8-bit images"
    assert 0 < terms.distance < 1e-12
    earlier = Declaration({**declared.recorded, "vote_version": 5}).procedure(0.0).terms
    assert earlier.scope == "all images, if floating-point noise is taken for exact"


def test_no_noise_is_for_dc_without_sift_and_8_bit_images() -> None:
    image = np.full((1, 8, 8), 90, np.uint8)
    sifted = DiffusionClassifier(ReadsLowBits(), "dc", grid=ONE_LEVEL, sift=SiftSpec(ONE_LEVEL, 0.1, keep=1))
    for classifier in (DiffusionClassifier(ReadsLowBits(), "apndc-ensemble", grid=ONE_LEVEL), sifted):
        with pytest.raises(ValueError, match="noise = 'none' is for the classifier dc without sift"):
            count_votes(classifier, image, sigma_pixel=0.0, noise="none", draws=range(1), **NAMED)
    with pytest.raises(ValueError, match=r"noise = 'none' has no sigma_pixel, and it is 0\.25"):
        count_votes(leaking_classifier(), image, sigma_pixel=0.25, noise="none", draws=range(1), **NAMED)
    with pytest.raises(ValueError, match="a smoothed classifier needs noise"):
        certify(leaking_classifier(), image, sigma_pixel=0.25, alpha=0.01, noise="none")
    with pytest.raises(ValueError, match="this noise is for 8-bit images, and this one is float64"):
        count_votes(leaking_classifier(), image / 255, sigma_pixel=0.0, noise="none", draws=range(1), **NAMED)
