"""Attacks on a finished run: one cell (an image at one noise level) after the other, each result published at once.

attacks/<settings>/<cell>.json   what the attacks of one cell found; the names change with all that was asked
attacks/<settings>.json          what was asked, so that other attacks on the same run take these into account
attacks/broken/<cell>.png        an image that breaks its certificate, if there is one (and .npy, exactly)
attacks.json                     the summary that the report reads
"""

import io
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ndc_core.analysis.ascent import ASCENTS
from ndc_core.analysis.attacks import ScoreObjective, TransferObjective, round_within
from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.certificates.confidence_sequences import log_wealth_of_means
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.checkpoints.image_classifiers import load_classifier
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.noise.draw_generators import draw_generator
from ndc_core.space import bytes_to_pixels
from ndc_core.voting import count_votes
from pipeline.certificates.attack_results import CONFIRM_ALPHA
from pipeline.data.datasets import ImageRecord
from pipeline.data.decoding import png_bytes
from pipeline.locations import exists, location, publish, read
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_settings import (
    CONFIRM_FACTOR,
    RIVALS,
    AttackCosts,
    AttackerSettings,
    cell_id,
    result_name,
)
from pipeline.workers.models import local_classifier
from pipeline.workers.rows import Columns, rows_of
from pipeline.workers.vote_actor import load_voter
from pipeline.workers.watchdog import LOADING, Heartbeat


@dataclass(frozen=True)
class Verdict:
    """The most harmful image found is `distance` away, and `support` is its votes for each class, or the mean scores
    where those decide. With `success` they favour another class; if `confirmed`, fresh ones do beyond doubt."""

    radius: float
    attacks: int
    success: bool
    confirmed: bool
    distance: float
    support: list[float]


class AttackActor:
    """Holds the model; for each cell attacks its certificate, then the label at growing radii until one falls."""

    source: ImageClassifier | None = None  # of a transfer attack
    spent = 0  # evaluations so far

    def __init__(self, settings: AttackerSettings, heartbeat: Heartbeat | None = None) -> None:
        self.settings = settings
        self.config = settings.voter.config
        self.heartbeat = heartbeat or Heartbeat()
        self.heartbeat.arrive()
        self.classifier = load_voter(settings.voter)
        if settings.attack.source:
            self.source = load_classifier(local_classifier(settings.attack.source), device=self.classifier.device)
        self.heartbeat.end(LOADING)
        self.pictures = RunStore(settings.voter.run_folder).pictures
        self.folder = location(settings.voter.run_folder) / "attacks"
        self.results = self.folder / settings.attack.folder(settings.voter.fingerprint)

    def __call__(self, batch: Columns) -> Columns:
        results, errors = [], []
        for row in rows_of(batch):
            path = self.results / result_name(row)
            cell = f"image {row['image_id']}, sigma_pixel {row['sigma_pixel']:g}"
            try:
                self.heartbeat.begin(cell)
                if not exists(path):
                    record = ImageRecord(**{name: row[name] for name in ImageRecord.__dataclass_fields__})
                    publish(path, json.dumps(self.attack(row, self.pictures.pixels(record))).encode())
                results.append(read(path).decode())
                errors.append("")
            except Exception as error:  # whatever it is, it is this cell's: the others go on
                results.append("")
                errors.append(f"{cell}: {error}")
            self.heartbeat.end(cell)
        return {"result": np.array(results), "error": np.array(errors)}

    def attack(self, row: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        certificate, verdicts, before = None, [], self.spent
        if row["predicted"] >= 0:
            certificate = self.strike(row, image, target=row["predicted"], radius=row["certified_radius"])
        for radius in map(float, row["radii"]):
            verdicts.append(asdict(self.strike(row, image, target=row["label"], radius=radius)))
            if verdicts[-1]["confirmed"]:
                break
        named = ("image_id", "label", "sigma_pixel", "predicted", "certified_radius", "right")
        return {
            **{key: row[key] for key in named},
            "certificate": certificate and asdict(certificate),
            "beyond": verdicts,
            "evaluations": self.spent - before,
        }

    def strike(self, row: dict[str, Any], image: np.ndarray, *, target: int, radius: float) -> Verdict:
        """All restarts at one radius; the verdict is on the image that left the target class the fewest votes."""
        adversarials = self._attacked(row, image, target=target, radius=radius) if radius else [image]
        shares = [self._support(row, attempt, radius, restart) for restart, attempt in enumerate(adversarials)]
        worst = min(range(len(shares)), key=lambda restart: _lead(shares[restart], target))
        support, adversarial = shares[worst], adversarials[worst]
        rival = int(np.argmax(support))
        success, inside = rival != target, row["predicted"] == target and radius <= row["certified_radius"]
        confirmed = success and self._confirmed(row, adversarial, radius, target=target, rival=rival, inside=inside)
        if confirmed and inside:
            self._save(row, adversarial)
        pixels = bytes_to_pixels(adversarial) if adversarial.dtype == np.uint8 else adversarial
        distance = float(np.sqrt(((pixels - bytes_to_pixels(image)) ** 2).sum()))
        return Verdict(radius, len(shares), success, confirmed, distance, support.tolist())

    def _attacked(self, row: dict[str, Any], image: np.ndarray, *, target: int, radius: float) -> list[np.ndarray]:
        """What each restart found: 8-bit images, unless the certificate covers others, too."""
        generator = self._generator(row, radius)
        objective = self._objective(row, image, target, generator)
        settings = self.settings.attack
        ascended = ASCENTS[settings.method](
            objective,
            image,
            radius_pixel=radius,
            steps=settings.steps,
            restarts=settings.restarts,
            generator=generator,
        )
        scores = self.classifier.evaluations_of_scores(1 + RIVALS)
        self.spent += AttackCosts(settings, vote=0, scores=scores).ascent
        if self.config.noise == "float":
            return list(ascended)
        return [round_within(adversarial, image, radius_pixel=radius) for adversarial in ascended]

    def _objective(
        self, row: dict[str, Any], image: np.ndarray, target: int, generator: torch.Generator
    ) -> ScoreObjective | TransferObjective:
        if self.source:
            return TransferObjective(self.source, target, self.classifier.device)
        settings, smoothed = self.settings.attack, self.config.certificate.method != "lipschitz"
        classes = (target, *self._rivals(row, image, target))
        objective = ScoreObjective(self.classifier, classes, row["sigma_pixel"], settings.draws, smoothed, generator)
        if settings.method == "pgd":
            return objective
        unit = objective.unit_at(torch.from_numpy(bytes_to_pixels(image))[None])
        return replace(objective, losses=("cross-entropy", "votes"), unit=unit)

    def _generator(self, row: dict[str, Any], radius: float) -> torch.Generator:
        """Randomness of the attack itself: a function of the cell and the radius, so that results can be repeated."""
        name = f"attack on {row['image_id']} at {radius} under {row['sigma_pixel']}"
        source = draw_generator(seed=self.config.seed, image_id=name, phase="selection", draw=0)
        return torch.Generator().manual_seed(int(source.integers(2**62)))

    def _draw(self, row: dict[str, Any], image: np.ndarray, name: str, votes: int) -> Any:
        drawn = count_votes(
            self.classifier,
            image,
            sigma_pixel=row["sigma_pixel"],
            noise=self.config.noise,
            seed=self.config.seed,
            image_id=f"{name} on {row['image_id']}",
            phase="estimation",
            draws=range(votes),
            keep_scores=True,
        )
        self.spent += drawn.evaluations
        return drawn

    def _rivals(self, row: dict[str, Any], image: np.ndarray, target: int) -> list[int]:
        """The classes with the next best scores on the image itself."""
        scores = self._draw(row, image, "rivals", self.settings.attack.draws).scores
        order = np.argsort(-np.nan_to_num(scores, neginf=scores[np.isfinite(scores)].min() - 1).mean(axis=0))
        return [int(c) for c in order if c != target][:RIVALS]

    def _support(self, row: dict[str, Any], image: np.ndarray, radius: float, restart: int) -> np.ndarray:
        """The support for each class at an image: votes, or the mean score where that decides."""
        drawn = self._draw(row, image, f"attack {restart} at {radius}", self.settings.attack.votes)
        support: np.ndarray = (
            drawn.scores.mean(axis=0) if self.config.certificate.method == "lipschitz" else drawn.votes
        )
        return support

    def _confirmed(
        self, row: dict[str, Any], image: np.ndarray, radius: float, *, target: int, rival: int, inside: bool
    ) -> bool:
        """Whether many fresh draws, which played no part in any choice, show at CONFIRM_ALPHA that the target has lost.

        A certificate says that within its radius the target has more than half of the votes: they must show that it has
        not. Elsewhere they must show that the rival, which the attack's own votes name, is ahead of the target, so that
        the target is not the most probable class. Where scores decide, that the rival's expected score is higher.
        """
        drawn = self._draw(row, image, f"confirmation at {radius}", CONFIRM_FACTOR * self.settings.attack.votes)
        if self.config.certificate.method == "lipschitz":
            method = self.settings.voter.declaration.procedure(row["sigma_pixel"])
            assert isinstance(method, Lipschitz)
            margins = drawn.scores[:, [rival]] - drawn.scores[:, [target]]
            wealth = log_wealth_of_means(margins, lowest=method.lowest_margin, mean=0.0)
            return bool(wealth[0] >= -math.log(CONFIRM_ALPHA))
        kept = int(drawn.votes[target])
        lost = int(drawn.votes.sum()) - kept if inside else int(drawn.votes[rival])
        return clopper_pearson_lower(lost, lost + kept, alpha=CONFIRM_ALPHA) > 0.5

    def _save(self, row: dict[str, Any], adversarial: np.ndarray) -> None:
        folder = self.folder / "broken"
        name = f"{cell_id(row['image_id'], row['sigma_pixel'])}"
        pixels = bytes_to_pixels(adversarial) if adversarial.dtype == np.uint8 else adversarial
        publish(folder / f"{name}.png", png_bytes(np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)))
        exactly = io.BytesIO()
        np.save(exactly, adversarial)
        publish(folder / f"{name}.npy", exactly.getvalue())


def _lead(support: np.ndarray, target: int) -> float:
    return float(support[target] - np.delete(support, target).max())
