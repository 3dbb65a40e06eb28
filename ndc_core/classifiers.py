"""The diffusion classifiers of the paper, all from one score loop.

Every one of them scores class y by  - sum_t c_t || h(z_t, sigma_t, y) - target_t ||^2  (a sum over the image's
dimensions) and differs only in how z_t and target_t are drawn. Noise and grid are shared by all classes, so
z_t and target_t never depend on y. docs/mathematics.md says where the four come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndc_core.denoiser import Denoiser
from ndc_core.grid import WEIGHTS, Grid, GridSpec, Levels, build_grid, tau_correction
from ndc_core.randomness import DrawNoise
from ndc_core.scores import Images, Path, ScoreLoop
from ndc_core.sift import SiftSpec, sift
from ndc_core.unconditional import Unconditional, null_label

Estimate = Callable[[], Images]
Shape = tuple[Images, Images, Levels, Levels]  # start, anchor, input_scale, target_scale


def dc(z: Images, estimate: Estimate, grid: Grid) -> Shape:
    """The image itself is diffused and is the target (tau = 0: whatever noise z has is taken for image)."""
    return z, z, grid.level, np.zeros_like(grid.level)


def epndc(z: Images, estimate: Estimate, grid: Grid) -> Shape:
    """z_tau is diffused on; the target is the exact posterior mean's, h* = z_tau - e tau^2 / s_t.

    From h* = z_t + (z_tau - z_t) sigma_t^2 / s_t^2 with z_t = z_tau + s_t e and s_t^2 = sigma_t^2 - tau^2.
    """
    s = np.sqrt(grid.level**2 - grid.tau_model**2)
    return z, z, s, -(grid.tau_model**2) / s


def apndc(z: Images, estimate: Estimate, grid: Grid) -> Shape:
    """z_tau is diffused on; the target is the unconditional estimate of the clean image."""
    return z, estimate(), np.sqrt(grid.level**2 - grid.tau_model**2), np.zeros_like(grid.level)


def apndc_ensemble(z: Images, estimate: Estimate, grid: Grid) -> Shape:
    """The unconditional estimate of the clean image is diffused and is the target."""
    clean = estimate()
    return clean, clean, grid.level, np.zeros_like(grid.level)


CLASSIFIERS: dict[str, Callable[[Images, Estimate, Grid], Shape]] = {
    "dc": dc,
    "epndc": epndc,
    "apndc": apndc,
    "apndc-ensemble": apndc_ensemble,
}


@dataclass(frozen=True)
class Prediction:
    """The class of each draw, its scores (minus infinity for a sifted class), and how many rows were evaluated."""

    winners: Int[np.ndarray, " draws"]
    scores: Float[np.ndarray, "draws classes"]
    evaluations: int


@dataclass(frozen=True)
class DiffusionClassifier:
    """A class-conditional denoiser as a classifier of noisy images.

    A step's squared error counts for at most `loss_cap` times the dimension, if that is set. Every forward pass has
    exactly `rows_per_pass` rows (the last is padded), so that no vote depends on what else is computed (rule S1).
    `unconditional` gives APNDC its target; left out, it is the denoiser's own at the all-zero label.

    Raises:
        ValueError: an unknown name or weight, or a number of rows below 1.
    """

    denoiser: Denoiser
    name: str
    grid: GridSpec
    weight: str = "elbo"
    sift: SiftSpec | None = None
    loss_cap: float | None = None
    rows_per_pass: int = 256
    device: str = "cpu"
    unconditional: Unconditional | None = None

    def __post_init__(self) -> None:
        for value, known, what in ((self.name, CLASSIFIERS, "classifier"), (self.weight, WEIGHTS, "weight")):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(known)}")
        if self.rows_per_pass < 1:
            raise ValueError(f"rows_per_pass must be at least 1, not {self.rows_per_pass}")
        if self.loss_cap is not None and not self.loss_cap > 0:
            raise ValueError(f"loss_cap must be above 0, not {self.loss_cap}")

    @property
    def estimator(self) -> Unconditional:
        return self.unconditional or null_label(self.denoiser)

    @property
    def active_sift(self) -> SiftSpec | None:
        """The sift, unless it would keep every class anyway."""
        return self.sift if self.sift and self.sift.keep < self.denoiser.num_classes else None

    def path(
        self,
        z: Images,
        estimate: Estimate,
        spec: GridSpec,
        noise: Float[Tensor, "draws steps c h w"],
        *,
        tau_model: float,
    ) -> tuple[Path, Levels]:
        """The path of noisy images z (model space) over a grid, and the weight c_t of each of its terms."""
        grid = build_grid(spec, tau_model=self.grid_start(tau_model))
        start, anchor, input_scale, target_scale = CLASSIFIERS[self.name](z, estimate, grid)
        weight = WEIGHTS[self.weight](grid)
        if self.name == "epndc":
            weight = weight * tau_correction(grid)
        # With explicit levels, fewer of them may lie above tau than there is noise for.
        return Path(start, anchor, grid.level, input_scale, target_scale, noise[:, -len(grid.level) :]), weight

    def grid_start(self, tau_model: float) -> float:
        """DC takes whatever noise z has for image: its grid does not start at it."""
        return 0.0 if self.name == "dc" else tau_model

    def scores(
        self, z: Float[np.ndarray, "draws c h w"], *, tau_model: float, noise: DrawNoise
    ) -> Float[np.ndarray, "draws classes"]:
        """The score of every class on the full grid, for each noisy image z (model space)."""
        everyone = np.ones((len(z), self.denoiser.num_classes), dtype=bool)
        return _Scorer(self, z, tau_model=tau_model).scores(everyone, noise.refine)

    def predict(self, z: Float[np.ndarray, "draws c h w"], *, tau_model: float, noise: DrawNoise) -> Prediction:
        """The class with the highest score for each noisy image z (model space), sifted first if so set.

        The result of a draw is a function of its z and of its own noise, and of nothing else (rule S2).

        Raises:
            NonFiniteScoreError: the denoiser returned NaN or infinity.
        """
        scorer = _Scorer(self, z, tau_model=tau_model)
        alive = scorer.survivors(noise.sift)
        contested = alive & (alive.sum(axis=1, keepdims=True) > 1)
        # The only survivor of a sift has won: it is not scored again.
        scores = np.where(contested, scorer.scores(contested, noise.refine), np.where(alive, 0.0, -np.inf))
        return Prediction(scores.argmax(axis=1), scores, scorer.loop.evaluations)


class _Scorer:
    """One batch of draws on its way through sift and refine; the clean estimate is made once."""

    def __init__(self, classifier: DiffusionClassifier, z: np.ndarray, *, tau_model: float) -> None:
        self.classifier = classifier
        self.tau_model = tau_model
        self.device = torch.device(classifier.device)
        self.loop = ScoreLoop(classifier.denoiser, rows_per_pass=classifier.rows_per_pass, device=self.device)
        self.z = torch.from_numpy(z).to(self.device, torch.float32)
        self.dimension = self.z[0].numel()
        self._clean: Images | None = None

    def _estimate(self) -> Images:
        if self._clean is None:
            self._clean = self.loop.estimate(self.z, self.classifier.estimator, sigma_model=self.tau_model)
        return self._clean

    def _path(self, spec: GridSpec, noise: np.ndarray) -> tuple[Path, Levels]:
        on_device = torch.from_numpy(noise).to(self.device)
        return self.classifier.path(self.z, self._estimate, spec, on_device, tau_model=self.tau_model)

    def _losses(
        self, path: Path, draw_of_pair: Int[np.ndarray, " pairs"], class_of_pair: Int[np.ndarray, " pairs"]
    ) -> Float[np.ndarray, "pairs steps"]:
        losses = self.loop.losses(path, draw_of_pair, class_of_pair)
        cap = self.classifier.loss_cap
        return losses if cap is None else np.minimum(losses, cap * self.dimension)

    @torch.inference_mode()
    def survivors(self, noise: Float[np.ndarray, "draws steps c h w"]) -> Bool[np.ndarray, "draws classes"]:
        draws, classes = len(self.z), self.classifier.denoiser.num_classes
        spec = self.classifier.active_sift
        if spec is None:
            return np.ones((draws, classes), dtype=bool)
        path, weight = self._path(spec.grid, noise)

        def step_loss(step: int, draw_of_pair: np.ndarray, class_of_pair: np.ndarray) -> np.ndarray:
            return weight[step] * self._losses(path.at(step), draw_of_pair, class_of_pair)[:, 0]

        threshold = spec.threshold_per_dim * self.dimension
        return sift(step_loss, draws=draws, classes=classes, steps=len(weight), threshold=threshold, keep=spec.keep)

    @torch.inference_mode()
    def scores(
        self, wanted: Bool[np.ndarray, "draws classes"], noise: Float[np.ndarray, "draws steps c h w"]
    ) -> Float[np.ndarray, "draws classes"]:
        """Scores on the full grid of the wanted pairs, minus infinity elsewhere."""
        scores = np.full(wanted.shape, -np.inf)
        if wanted.any():
            path, weight = self._path(self.classifier.grid, noise)
            scores[wanted] = -self._losses(path, *wanted.nonzero()) @ weight
        return scores
