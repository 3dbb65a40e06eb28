"""From a batch of noisy images to the class of each: estimate, sift, race, count.

A batch is a task (`forward_passes.Task`): it asks for rows and is sent the answers, so several batches share forward
passes. Every decision about a draw depends on its own losses only (rule S2).
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndc_core.classifiers.diffusion_scores import DiffusionScores
from ndc_core.classifiers.losses import (
    Images,
    Path,
    ask_label_gradients,
    ask_losses,
    ask_losses_of_every_class,
    refuse_non_finite,
)
from ndc_core.classifiers.racing import leaders, strided, survivors, turns_to_leave
from ndc_core.classifiers.sift import sift, smallest
from ndc_core.classifiers.step_noise import StepNoise
from ndc_core.classifiers.unconditional import estimates
from ndc_core.classifiers.voter import NO_CLASS, Candidates, IndependentDraws, PathDraws, Prediction, StepValues
from ndc_core.models.forward_passes import Ask, Task, answer
from ndc_core.models.transfers import to_device
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise

Answers = Generator[Ask, Tensor, None]
Alive = Bool[np.ndarray, "draws classes"]


def predict(
    classifier: DiffusionScores, z: Float[np.ndarray, "draws c h w"], *, tau_model: float, noise: DrawNoise
) -> Prediction:
    """The class with the highest score for each noisy image z (model space), sifted and raced if so set.

    The result of a draw is a function of its z and of its own noise, and of nothing else (rule S2).

    Raises:
        NonFiniteScoreError: the denoiser returned NaN or infinity.
    """
    return _answered(classifier, IndependentDraws(z, tau_model, noise.refine, noise.sift))


def scores(
    classifier: DiffusionScores, z: Float[np.ndarray, "draws c h w"], *, tau_model: float, noise: DrawNoise
) -> Float[np.ndarray, "draws classes"]:
    """The score of every class on the full grid, for each noisy image z (model space)."""
    return _answered(classifier, IndependentDraws(z, tau_model, noise.refine, noise.sift), everyone=True).scores


def _answered(classifier: DiffusionScores, draws: IndependentDraws, *, everyone: bool = False) -> Prediction:
    task = score_independently(classifier, draws, everyone=everyone)
    return answer(task, rows_per_pass=classifier.rows_per_pass, device=torch.device(classifier.device))[0]


def score_independently(
    classifier: DiffusionScores, draws: IndependentDraws, *, everyone: bool = False
) -> Task[list[Prediction]]:
    """Votes at one noise level, with fresh noise at each step. See `score_on_shared_path` for candidates."""
    scoring = _BatchScoring(classifier, [draws.z], (draws.tau_model,), draws.candidates)
    clean = yield from scoring.estimates()
    scoring.open(*scoring.path(clean, classifier.grid, draws.refine))
    if not everyone:
        if classifier.active_sift:
            yield from scoring.sift(clean, draws.sift)
        yield from scoring.shortlist()
    if classifier.race and not everyone:
        yield from scoring.race(classifier.race.gap)
    else:
        yield from scoring.score_all()
    return scoring.predictions()


def score_on_shared_path(classifier: DiffusionScores, draws: PathDraws) -> Task[list[Prediction]]:
    """Votes at several noise levels from the same network outputs.

    A vote whose candidate has left may stop, because it is decided that the candidate does not win it; its winner is
    then the class that led at that moment.
    """
    scoring = _BatchScoring(classifier, draws.z, draws.taus_model, draws.candidates)
    clean = yield from scoring.estimates()
    later = scoring.on_device(draws.later)
    scoring.open(*classifier.shared_path(scoring.z, clean, later, taus_model=draws.taus_model))
    yield from scoring.shortlist()
    if classifier.race:
        yield from scoring.race(classifier.race.gap)
    else:
        yield from scoring.score_all()
    return scoring.predictions()


def class_scores(
    classifier: DiffusionScores,
    z: Float[Tensor, "draws c h w"],
    noise: Float[Tensor, "draws steps c h w"],
    *,
    tau_model: float,
    classes: tuple[int, ...],
) -> Task[Float[Tensor, "draws some_classes"]]:
    """The scores of some classes on the full grid without sift, differentiable in z (model space)."""
    clean = None
    if classifier.formula.needs_estimate:
        estimator = classifier.estimator
        clean = yield from estimates(estimator, z, tau_model, rows_per_pass=len(z) * estimator.evaluations)
    path, weight = classifier.path(z, clean, classifier.grid, noise, tau_model=tau_model)
    steps = len(path.level)
    draw, place, step = (ids.ravel() for ids in np.indices((len(z), len(classes), steps)))
    losses = yield ask_losses(classifier.denoiser, path, draw, step, np.array(classes)[place])
    if classifier.loss_cap is not None:
        losses = losses.clamp_max(classifier.loss_cap * z[0].numel())
    return -(losses.view(len(z), len(classes), steps) @ torch.as_tensor(weight[0], device=z.device))


class _BatchScoring:
    """One batch of draws, each at every tau: which classes are still alive, and the weighted losses that are known.

    `known` and `losses` are shared by all tau; at each, only the steps with a weight count, in the order `order`.
    """

    def __init__(
        self,
        classifier: DiffusionScores,
        z: Sequence[np.ndarray],
        taus_model: tuple[float, ...],
        candidates: Candidates | None,
    ) -> None:
        self.classifier, self.taus_model = classifier, taus_model
        self.device = torch.device(classifier.device)
        self.z = tuple(self.on_device(images) for images in z)
        self.dimension = self.z[0][0].numel()
        shape = (len(z), len(z[0]))
        self.candidates = np.full(shape, NO_CLASS) if candidates is None else candidates
        self.cost = np.zeros(len(z[0]), dtype=np.int64)
        self.alive = np.ones((*shape, classifier.denoiser.num_classes), dtype=bool)
        self.winners = np.full(shape, NO_CLASS)

    def on_device(self, images: np.ndarray) -> Tensor:
        return to_device(images.astype(np.float32, copy=False), self.device)

    def ask(self, ask: Ask, draw: Int[np.ndarray, " rows"]) -> Generator[Ask, Tensor, np.ndarray]:
        """The answer to rows of these draws, on the host."""
        self.cost += np.bincount(draw, minlength=len(self.cost)) * ask.evaluations_per_row
        return (yield ask).numpy()

    # What the votes need before they begin

    def estimates(self) -> Generator[Ask, Tensor, tuple[Images, ...] | None]:
        """The clean image behind each z without a label, if the classifier's formula needs it."""
        if not self.classifier.formula.needs_estimate:
            return None
        by_level, rows_per_pass = [], self.classifier.rows_per_pass
        for z, tau_model in zip(self.z, self.taus_model, strict=True):
            self.cost += self.classifier.estimator.evaluations
            by_level.append(
                (yield from estimates(self.classifier.estimator, z, tau_model, rows_per_pass=rows_per_pass))
            )
        return tuple(by_level)

    def path(
        self, clean: tuple[Images, ...] | None, grid: GridSpec, noise: StepValues
    ) -> tuple[Path, Float[np.ndarray, "1 steps"]]:
        """A path with noise of its own at each step, where there is one tau."""
        ((z,), (tau_model,)), steps = (self.z, self.taus_model), StepNoise(noise, self.device)
        path, weight = self.classifier.path(z, clean[0] if clean else None, grid, steps.values, tau_model=tau_model)
        return replace(path, reach=steps.reach(len(path.level))), weight

    def open(self, path: Path, weight: Float[np.ndarray, "taus steps"]) -> None:
        """The path that all classes are scored on."""
        taus, draws, classes = self.alive.shape
        self.scored, self.weight = path, weight
        own = [steps.nonzero()[0] for steps in weight]
        self.order = [steps[strided(len(steps))] for steps in own]
        self.known = np.zeros((draws, len(path.level), classes), dtype=bool)
        self.losses = np.full((taus, *self.known.shape), np.nan)

    # Which classes are scored at all

    def sift(self, clean: tuple[Images, ...] | None, noise: StepValues) -> Answers:
        """The paper's sift, on a grid and with noise of its own; only where there is one tau."""
        spec = self.classifier.active_sift
        assert spec is not None
        path, weight = self.path(clean, spec.grid, noise)
        sifting = sift(
            draws=len(self.z[0]),
            classes=self.alive.shape[2],
            steps=len(path.level),
            threshold=spec.threshold_per_dim * self.dimension,
            keep=spec.keep,
        )
        answer = None
        while True:
            try:
                step, draw, class_id = next(sifting) if answer is None else sifting.send(answer)
            except StopIteration as stop:
                self.alive[0] = stop.value
                return
            answer = (yield from self._losses(path, weight, draw, np.full(len(draw), step), class_id))[0]

    def shortlist(self) -> Answers:
        """The classes that come first by the label's gradient, at each tau by its own losses."""
        spec = self.classifier.active_label_gradient
        if spec is None:
            return
        for tau, order in enumerate(self.order):
            steps = order[: spec.steps]
            draw, step = (ids.ravel() for ids in np.indices((len(self.z[0]), len(steps))))
            ask = ask_label_gradients(self.classifier.denoiser, self.scored.at_level(tau), draw, steps[step])
            losses = yield from self.ask(ask, draw)
            refuse_non_finite(losses, self.scored, draw=draw, step=steps[step], class_id=None)
            weighted = losses.reshape(len(self.z[0]), len(steps), -1) * self.weight[tau, steps][:, None]
            self.alive[tau] = smallest(weighted.sum(axis=1), spec.keep)

    # Scoring

    def score_all(self) -> Answers:
        """All steps of all classes that are alive; the only one alive has won and is not scored."""
        contested = self.alive & (self.alive.sum(axis=2, keepdims=True) > 1)
        wanted = np.zeros_like(self.known)
        for of_tau, order in zip(contested, self.order, strict=True):
            wanted[:, order] |= of_tau[:, None]
        # About one pass of rows at a time, so that noise is drawn while rows of other batches are in passes.
        rows_a_step = int(
            (contested.any(axis=0).any(axis=1) if self.classifier.all_at_once else contested.any(0)).sum()
        )
        at_once = 1 + self.classifier.rows_per_pass // max(1, rows_a_step)
        for first in range(0, len(self.scored.level), at_once):
            steps = np.arange(first, min(first + at_once, len(self.scored.level)))
            yield from self._learn(steps, wanted[:, steps])
        for tau in range(len(self.alive)):
            self.winners[tau] = leaders(np.nan_to_num(self._so_far(tau, None)), self.alive[tau])[0]

    def race(self, gap: float) -> Answers:
        """One step of each vote at a time, until one class is left or the candidate has left; first, as many steps as a
        class needs to leave."""
        turns_done, reached, most = 0, 0, max(map(len, self.order))
        for turns in range(min(turns_to_leave(gap), most), most + 1):
            if turns > reached:
                reached = max(turns, 2 * turns_done)
                self._reach(slice(turns_done, reached))
            racing = [tau for tau, order in enumerate(self.order) if turns_done < len(order)]
            own = {tau: self.order[tau][turns_done:turns] for tau in racing}
            steps = np.unique(np.concatenate(list(own.values())))
            wanted = np.zeros((len(self.known), len(steps), self.known.shape[2]), dtype=bool)
            for tau in racing:
                open_to = self.alive[tau] & self._open(tau)[:, None]
                wanted[:, np.searchsorted(steps, own[tau])] |= open_to[:, None]
            if not wanted.any():
                return
            yield from self._learn(steps, wanted)
            for tau in racing:
                self._judge(tau, min(turns, len(self.order[tau])), gap)
            turns_done = turns

    def _reach(self, turns: slice) -> None:
        """Lets the noise of some turns be drawn for all open votes at once, which takes less time."""
        for tau, order in enumerate(self.order):
            draw, step = np.meshgrid(self._open(tau).nonzero()[0], order[turns], indexing="ij")
            self.scored.reach(draw.ravel(), step.ravel())

    def _open(self, tau: int) -> Bool[np.ndarray, " draws"]:
        alone = self.alive[tau].sum(axis=1) == 1
        undecided = self.winners[tau] == NO_CLASS
        self.winners[tau] = np.where(undecided & alone, self.alive[tau].argmax(axis=1), self.winners[tau])
        return undecided & ~alone

    def _judge(self, tau: int, turns: int, gap: float) -> None:
        """Lets classes leave by the losses of a vote's first turns, and closes the votes that are decided."""
        voting = self._open(tau).nonzero()[0]
        losses, alive = self._so_far(tau, turns, voting), self.alive[tau][voting]
        alive = survivors(losses, alive, gap=gap)
        candidate, last = self.candidates[tau][voting], turns == len(self.order[tau])
        beaten = (candidate != NO_CLASS) & ~alive[np.arange(len(voting)), candidate]
        decided = beaten | last | (alive.sum(axis=1) == 1)
        self.alive[tau][voting] = alive
        self.winners[tau][voting[decided]] = leaders(losses, alive)[0][decided]

    def _so_far(
        self, tau: int, turns: int | None, draws: Int[np.ndarray, " some"] | None = None
    ) -> Float[np.ndarray, "some turns classes"]:
        """The losses of a vote's first turns, of all draws or of some."""
        rows = np.arange(len(self.known)) if draws is None else draws
        losses: np.ndarray = self.losses[tau][rows[:, None], self.order[tau][:turns]]
        return losses

    def _learn(self, steps: Int[np.ndarray, " some"], wanted: Bool[np.ndarray, "draws some classes"]) -> Answers:
        """Asks for those losses of some steps that are wanted and not known; all tau share the answers."""
        missing = wanted & ~self.known[:, steps]
        if not missing.any():
            return
        if self.classifier.all_at_once:
            draw, place = np.nonzero(missing.any(axis=2))
            step = steps[place]
            losses = yield from self._losses(self.scored, self.weight, draw, step, None)
            self.losses[:, draw, step], self.known[draw, step] = losses, True
        else:
            draw, place, class_id = missing.nonzero()
            step = steps[place]
            losses = yield from self._losses(self.scored, self.weight, draw, step, class_id)
            self.losses[:, draw, step, class_id], self.known[draw, step, class_id] = losses, True

    def _losses(
        self, path: Path, weight: np.ndarray, draw: np.ndarray, step: np.ndarray, class_id: np.ndarray | None
    ) -> Generator[Ask, Tensor, Float[np.ndarray, "taus rows *classes"]]:
        """Weighted losses of rows; of all classes, if no class is named."""
        denoiser, cap = self.classifier.denoiser, self.classifier.loss_cap
        ask = (
            ask_losses_of_every_class(denoiser, path, draw, step)
            if class_id is None
            else ask_losses(denoiser, path, draw, step, class_id)
        )
        losses = yield from self.ask(ask, draw)
        refuse_non_finite(losses, path, draw=draw, step=step, class_id=class_id)
        losses = losses if cap is None else np.minimum(losses, cap * self.dimension)
        weights = weight[:, step].reshape(len(weight), len(step), *[1] * (losses.ndim - 2))
        return np.moveaxis(losses, 1, 0) * weights

    def predictions(self) -> list[Prediction]:
        """One for each tau; the cost, which they share, is counted with the first."""
        predictions = []
        for tau, (alive, winners) in enumerate(zip(self.alive, self.winners, strict=True)):
            contested = alive & (alive.sum(axis=1, keepdims=True) > 1)
            sums = np.where(contested, -self._so_far(tau, None).sum(axis=1), 0.0)
            predictions.append(Prediction(winners, np.where(alive, sums, -np.inf), self.cost * (tau == 0)))
        return predictions
