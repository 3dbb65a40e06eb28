"""The attack works where it must, and not where a proof says that it cannot."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ndc_core import certify, predict
from ndc_core.analysis.ascent import ASCENTS, AscentName
from ndc_core.analysis.attacks import ScoreObjective, TransferObjective, alternate, round_within
from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.scoring import scores
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise
from ndc_core.voting import count_votes
from tests.support.fakes import GaussianDenoiser

GRID = GridSpec(points=6, sigma_model_max=2.0, spacing="log")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """L2 distance in pixel units, of 8-bit images or of pixels in [0, 1]."""
    a, b = (x.astype(float) / 255 if x.dtype == np.uint8 else x for x in (first, second))
    return float(np.linalg.norm((a - b).ravel()))


@settings(max_examples=200)
@given(
    image=st.lists(st.integers(0, 255), min_size=12, max_size=12),
    change=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
    radius=st.floats(0.001, 1.5),
)
def test_rounding_to_8_bits_never_leaves_the_ball(image: list[int], change: list[float], radius: float) -> None:
    clean = np.array(image, np.uint8).reshape(1, 3, 4)
    delta = np.array(change).reshape(1, 3, 4)
    norm = max(1e-12, float(np.linalg.norm(delta)))
    adversarial = (clean / 255 + delta * min(1, radius * (1 - 1e-6) / norm)).clip(0, 1)
    rounded = round_within(adversarial, clean, radius_pixel=radius)
    levels = rounded.astype(int) - clean
    assert (levels**2).sum() < (255 * radius) ** 2 or not levels.any()
    assert np.abs(rounded / 255 - adversarial).max() < 1 / 255 + 1e-12


class Recorded:
    """A denoiser that records how many rows each pass has."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.rows = denoiser, []
        self.image_shape, self.num_classes = denoiser.image_shape, denoiser.num_classes

    def __call__(self, z, sigma_model, label):
        self.rows.append(len(z))
        return self.denoiser(z, sigma_model, label)


@pytest.mark.parametrize("name", ["epndc", "apndc"])
def test_an_attack_takes_no_more_memory_for_more_rows_and_has_the_same_gradient(tiny_model, name: str) -> None:
    gradients = []
    for rows_per_pass in (40, 4000):
        denoiser = Recorded(load_denoiser(tiny_model))
        classifier = DiffusionClassifier(denoiser, name, grid=GRID, weight="edm", rows_per_pass=rows_per_pass)
        x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64, requires_grad=True)
        objective = ScoreObjective(classifier, (0, 1, 2), 0.25, 3, True, seeded())
        gradients.append(torch.autograd.grad(objective(x).sum(), x)[0])
        assert max(denoiser.rows) == min(rows_per_pass // 4, 2 * 3 * 3 * GRID.steps)
    of_few, of_all = gradients
    assert (of_few - of_all).norm() < 1e-3 * of_all.norm(), "but for rounding"


def test_scores_of_the_attack_are_those_of_the_votes(tiny_model) -> None:
    """The same noise gives the same scores, so the gradient is that of what is certified."""
    for name in ("dc", "epndc", "apndc", "apndc-ensemble"):
        classifier = DiffusionClassifier(
            load_denoiser(tiny_model),
            name,
            grid=GridSpec(6, 2.0, "log", 0.3),
            weight="edm",
            rows_per_pass=64,
            loss_cap=0.3,
        )
        z = np.random.default_rng(0).standard_normal((3, 1, 8, 8))
        refine = torch.randn(3, 4, 1, 8, 8, generator=seeded(5)).numpy()
        noise = DrawNoise(input=z, refine=refine, sift=refine[:, :0])
        expected = scores(classifier, z, tau_model=0.5, noise=noise)[:, [3, 1, 7]]
        objective = ScoreObjective(classifier, (3, 1, 7), 0.25, 1, True, seeded(5))
        attacked = objective.scores(torch.from_numpy(z)).detach().numpy()
        np.testing.assert_allclose(attacked, expected, rtol=1e-4)


@pytest.mark.parametrize("smoothed", [True, False])
def test_the_gradient_is_that_of_the_objective(smoothed: bool) -> None:
    denoiser = GaussianDenoiser(torch.tensor([[0.5, 0.0, 0.1], [-0.5, 0.2, 0.0]]), 0.1)
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=GRID, weight="edm")

    def value(x: torch.Tensor) -> torch.Tensor:
        return ScoreObjective(classifier, (0, 1), 0.25, 40, smoothed, seeded(1))(x)

    x = torch.tensor([[[[0.6, 0.5, 0.4]]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(x).sum(), x)
    direction = gradient / gradient.norm()
    step = 1e-2
    numeric = (value(x.detach() + step * direction) - value(x.detach() - step * direction)) / (2 * step)
    # The unit of the cross-entropy is held fixed in the gradient, so its scale is free and its direction is not.
    assert float(numeric) > 0
    if not smoothed:
        assert float(numeric) == pytest.approx(float(gradient.norm()), rel=0.02)


DIMENSION = 16


@pytest.fixture(scope="module")
def between_two() -> tuple[DiffusionClassifier, np.ndarray, float]:
    """Two classes of equal shape: the smoothed classifier's border is the plane between them, whatever the noise."""
    direction = torch.ones(DIMENSION) / math.sqrt(DIMENSION)
    denoiser = GaussianDenoiser(torch.stack([0.8 * direction, -0.8 * direction]), 0.05)
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=GRID, weight="edm", rows_per_pass=1024)
    image = np.full((1, 1, DIMENSION), round(255 * 0.55), np.uint8)  # 0.05 from grey in every pixel
    return classifier, image, math.sqrt(DIMENSION) * (round(255 * 0.55) / 255 - 0.5)


def share_of_class_0(classifier: DiffusionClassifier, image: np.ndarray) -> float:
    drawn = count_votes(
        classifier,
        image,
        sigma_pixel=0.25,
        noise="integer",
        seed=1,
        image_id="attacked",
        phase="estimation",
        draws=range(2000),
    )
    return float(drawn.votes[0] / 2000)


class Between:
    """A plain classifier with the same border, however sure it is."""

    image_shape, num_classes = (1, 1, DIMENSION), 2

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        brightness = z.flatten(1).sum(1)
        return torch.stack([20 * brightness, -20 * brightness], dim=1)


WAYS = {
    "pgd": lambda classifier: ScoreObjective(classifier, (0, 1), 0.25, 8, True, seeded(2)),
    "apgd": lambda classifier: ScoreObjective(
        classifier, (0, 1), 0.25, 8, True, seeded(2), ("cross-entropy", "votes"), unit=0.5
    ),
    "transfer": lambda classifier: TransferObjective(Between(), 0, "cpu"),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(("reach", "falls"), [(0.9, False), (1.2, True)])
def test_a_smoothed_classifier_falls_beyond_its_true_radius_and_not_below(between_two, way, reach, falls) -> None:
    classifier, image, border = between_two
    assert share_of_class_0(classifier, image) > 0.7
    adversarials = ASCENTS["pgd" if way == "pgd" else "apgd"](
        WAYS[way](classifier), image, radius_pixel=reach * border, steps=10, restarts=4, generator=seeded(3)
    )
    shares = [share_of_class_0(classifier, round_within(x, image, radius_pixel=reach * border)) for x in adversarials]
    assert all((share < 0.5) == falls for share in shares), shares


@pytest.mark.parametrize("way", list(WAYS))
def test_no_attack_breaks_a_certificate(between_two, way: str) -> None:
    """The procedure is sound: its radius is within the true one in all but alpha of the cases."""
    classifier, image, border = between_two
    certificate = certify(classifier, image, sigma_pixel=0.25, alpha=0.001, estimation_votes=2000)
    assert certificate.predicted == 0
    assert 0.7 * border < certificate.radius <= border
    adversarials = ASCENTS["apgd"](
        WAYS[way](classifier),
        image,
        radius_pixel=certificate.radius,
        steps=20,
        restarts=6,
        generator=seeded(4),
    )
    for x in adversarials:
        rounded = round_within(x, image, radius_pixel=certificate.radius)
        assert distance(rounded, image) < certificate.radius
        assert predict(classifier, rounded, sigma_pixel=0.25, votes=2000).predicted in (0, None)
        lost = round(2000 * (1 - share_of_class_0(classifier, rounded)))
        assert clopper_pearson_lower(lost, 2000, alpha=1e-4) <= 0.5, "as an attack's votes are confirmed"


def test_each_restart_has_a_loss_of_its_own() -> None:
    scores = torch.tensor([[2.0, 0.5, 1.0]], dtype=torch.float64).expand(4, 1, 3)
    entropy, votes, margin, again = alternate(("cross-entropy", "votes", "margin"), scores)[:, 0].tolist()
    assert entropy == again == pytest.approx(math.log(sum(math.exp(s) for s in (2, 0.5, 1))) - 2)
    assert votes == pytest.approx(1 / (1 + math.exp(1)))
    assert margin == -1


def test_steps_can_be_compared_in_one_unit(between_two) -> None:
    """At the same noise the objective falls with the distance from the border, and its unit is that of its scores."""
    classifier, image, _ = between_two
    clean = torch.from_numpy(image / 255)[None]
    unit = ScoreObjective(classifier, (0, 1), 0.25, 64, True, seeded(2)).unit_at(clean)
    values = [
        float(ScoreObjective(classifier, (0, 1), 0.25, 64, True, seeded(2), ("votes",), unit)(clean + step))
        for step in (-0.1, 0.0, 0.1)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.5 > values[1]


@pytest.mark.parametrize("name", list(ASCENTS))
def test_an_undefended_classifier_is_broken(name: AscentName) -> None:
    """Logistic regression on digits, at a distance of 1."""
    from sklearn.linear_model import LogisticRegression

    from tests.support.small_runs import digits

    train, test = digits("train"), digits("test")[:40]
    pixels = np.stack([example.image.ravel() / 255 for example in train])
    model = LogisticRegression(max_iter=500, C=100).fit(pixels, [example.label for example in train])
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    right = broken = 0
    for example in test:
        if model.predict(example.image.reshape(1, -1) / 255)[0] != example.label:
            continue
        right += 1

        def loss(x: torch.Tensor, label: int = example.label) -> torch.Tensor:
            return -(x.flatten(1) @ weight.T + bias).log_softmax(1)[:, label]

        adversarials = ASCENTS[name](loss, example.image, radius_pixel=1.0, steps=10, restarts=2, generator=seeded())
        broken += any(model.predict(adversarial.reshape(1, -1))[0] != example.label for adversarial in adversarials)
    assert right >= 35
    assert broken >= 0.9 * right
