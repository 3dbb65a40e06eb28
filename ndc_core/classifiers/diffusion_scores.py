"""How a class-conditional denoiser scores noisy images by one of the formulas, and which classes it scores."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ndc_core.classifiers.formulas import CLASSIFIERS, ON_ONE_PATH, Formula, refuse_combination
from ndc_core.classifiers.losses import Images, Path
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
from ndc_core.classifiers.unconditional import Unconditional, null_label
from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.forward_passes import Kind
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.noise.grid import WEIGHTS, Grid, GridSpec, Levels, build_grid, path_levels, tau_correction


@dataclass(frozen=True)
class DiffusionScores:
    """How a class-conditional denoiser scores noisy images, and which classes it scores.

    A step's squared error counts for at most `loss_cap` times the dimension, if that is set. Every forward pass has
    exactly `rows_per_pass` rows (the last is padded), so that no vote depends on what else is computed (rule S1).
    `unconditional` gives APNDC its target; left out, it is the denoiser's own at the all-zero label. `sift` and
    `label_gradient` choose the classes that are scored, `race` lets them leave. With `one_path` the noise of a step
    adds to that of the step before it, so that the votes of several noise levels can share network outputs.

    Raises:
        ValueError: an unknown name or weight, a number of rows below 1, two ways to sift, or a formula, grid or sift
            that one path cannot serve.
    """

    denoiser: Denoiser
    name: str
    grid: GridSpec
    weight: str = "elbo"
    sift: SiftSpec | None = None
    label_gradient: LabelGradientSpec | None = None
    race: RaceSpec | None = None
    one_path: bool = False
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
        refuse_combination(
            self.name, self.grid, sift=self.sift, label_gradient=self.label_gradient, one_path=self.one_path
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.denoiser.image_shape

    @property
    def num_classes(self) -> int:
        return self.denoiser.num_classes

    @property
    def main_network(self) -> Denoiser:
        """The network of most passes."""
        return self.denoiser

    @property
    def passes(self) -> list[tuple[Kind, Denoiser | ImageClassifier]]:
        """The kinds of passes that scores are made of, each with its network; no pair twice."""
        kinds: list[tuple[Kind, Denoiser | ImageClassifier]] = [(self._kind_of_losses, self.denoiser)]
        if self.formula.needs_estimate and (self.all_at_once or self.estimator.denoiser is not self.denoiser):
            kinds.append(("forward", self.estimator.denoiser))
        if self.active_label_gradient:
            kinds.append(("label_gradient", self.denoiser))
        return kinds

    @property
    def _kind_of_losses(self) -> Kind:
        if isinstance(self.denoiser, EveryLoss):
            return "every_loss"
        return "every_class" if self.all_at_once else "forward"

    @property
    def noise_steps(self) -> tuple[int, int]:
        """How many arrays of noise a vote needs besides its input's: for the grid, and for a sift."""
        return self.grid.steps, self.active_sift.grid.steps if self.active_sift else 0

    @property
    def takes_clean_images(self) -> bool:
        """Whether it can score an image that no noise was added to, with the noise of its steps on a lattice."""
        return self.name == "dc" and not self.sift

    @property
    def votes_cost_alike(self) -> bool:
        """Whether every vote costs the most that one may: no class leaves early, and levels share nothing."""
        return not (self.active_sift or self.label_gradient or self.race or self.one_path)

    @property
    def most_evaluations_per_vote(self) -> int:
        """Sift of all classes, all levels of the kept ones, and the estimate without a label."""
        sift, gradient, classes = self.active_sift, self.active_label_gradient, self.num_classes
        estimating = self.estimator.evaluations if self.formula.needs_estimate else 0
        if self.all_at_once:
            return self.grid.steps + estimating
        kept = gradient.keep if gradient else sift.keep if sift else classes
        sifting = sift.grid.steps * classes if sift else 2 * gradient.steps if gradient else 0
        return sifting + kept * self.grid.steps + estimating

    def evaluations_of_scores(self, classes: int) -> int:
        """For one draw's scores of this many classes on the whole grid, at most: a row for each class and level."""
        estimating = self.estimator.evaluations if self.formula.needs_estimate else 0
        return self.grid.steps * classes + estimating

    @property
    def formula(self) -> Formula:
        return CLASSIFIERS[self.name]

    @property
    def estimator(self) -> Unconditional:
        return self.unconditional or null_label(self.denoiser)

    @property
    def all_at_once(self) -> bool:
        """Whether one forward pass gives every class, so that none needs to be left out."""
        return isinstance(self.denoiser, EveryClass)

    @property
    def active_sift(self) -> SiftSpec | None:
        """The sift, unless it would keep every class anyway."""
        spec = self.sift
        return spec if spec and spec.keep < self.denoiser.num_classes and not self.all_at_once else None

    @property
    def active_label_gradient(self) -> LabelGradientSpec | None:
        """The label gradient, unless it would keep every class anyway."""
        spec = self.label_gradient
        return spec if spec and spec.keep < self.denoiser.num_classes and not self.all_at_once else None

    @property
    def asks_for_gradients(self) -> bool:
        """Whether some of its passes are differentiated."""
        return self.active_label_gradient is not None

    def grid_start(self, tau_model: float) -> float:
        """DC counts noise in z as image: its grid does not start at tau."""
        return 0.0 if self.name == "dc" else tau_model

    def weights(self, grid: Grid) -> Levels:
        """c_t of each term."""
        weight = WEIGHTS[self.weight](grid)
        return weight * tau_correction(grid) if self.name == "epndc" else weight

    def path(
        self,
        z: Images,
        clean: Images | None,
        spec: GridSpec,
        noise: Float[Tensor, "draws steps c h w"],
        *,
        tau_model: float,
    ) -> tuple[Path, Float[np.ndarray, "1 steps"]]:
        """Noisy images z (model space) diffused by independent noise at each level, and the weight c_t of each term.

        `clean` is the estimate of the clean image, for the formulas that need one.
        """
        grid = build_grid(spec, tau_model=self.grid_start(tau_model))
        formula, images = self.formula, {"image": z, "estimate": clean}
        start, anchor = images[formula.start], images[formula.anchor]
        assert start is not None
        assert anchor is not None
        # With explicit levels, fewer of them may lie above tau than there is noise for.
        used, share = noise[:, -len(grid.level) :], formula.anchor_share(grid)[None]
        return Path(start, used, grid.level, formula.input_scale(grid), (anchor,), share), self.weights(grid)[None]

    def shared_path(
        self,
        z: tuple[Images, ...],
        clean: tuple[Images, ...] | None,
        later: Float[Tensor, "draws steps c h w"],
        *,
        taus_model: tuple[float, ...],
    ) -> tuple[Path, Float[np.ndarray, "taus steps"]]:
        """One path for several tau: z at each of them, `later` at all levels beyond the smallest. DC has tau = 0 only.

        A level that does not lie beyond a tau has weight 0 for it: a vote may use only levels beyond its tau (rule S2).
        """
        assert self.name in ON_ONE_PATH or (self.name == "dc" and taus_model == (0.0,))
        level = np.array(path_levels(self.grid, taus_model=taus_model))
        weight, share = np.zeros((len(taus_model), len(level))), np.ones((len(taus_model), len(level)))
        for row, tau_model in enumerate(taus_model):
            grid = build_grid(self.grid, tau_model=tau_model)
            weight[row, -len(grid.level) :] = self.weights(grid)
            share[row, -len(grid.level) :] = self.formula.anchor_share(grid)
        anchors = z if self.formula.anchor == "image" or clean is None else clean
        start = torch.zeros_like(z[0])  # `later` holds the noisy images themselves
        return Path(start, later, level, np.ones(len(level)), anchors, share), weight
