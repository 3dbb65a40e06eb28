"""The certificate that a run declares, as a procedure for one noise level."""

from dataclasses import dataclass

from ndc_core.certificates.certificate import LipschitzTerms, Procedure, Terms
from ndc_core.certificates.registry import CERTIFICATES
from ndc_core.noise.grid import GridSpec, path_levels
from ndc_core.noise.lattice import lattice_distance
from ndc_core.noise.shared_path import PATH_NOISES, sigmas_on_path
from ndc_core.noise.smoothing import NOISES, FloatNoise, NoiseName


@dataclass(frozen=True)
class ScoreSpec:
    """What the scores of a diffusion classifier are made of; baselines have none."""

    grid: GridSpec
    weight: str
    loss_cap: float | None
    one_path: bool


@dataclass(frozen=True)
class ProcedureSpec:
    """All of a certificate that is fixed before the first draw, except the images.

    `votes` are those of estimation, `radii` those that sampling aims at. `on_lattice` tells whether the steps of the
    lipschitz certificate draw on a lattice, or in floating point as in runs of an earlier version.
    """

    certificate: str
    alpha: float
    maximum_over_sigmas: bool
    votes: int
    radii: tuple[float, ...]
    precision: float
    sigma_pixel: tuple[float, ...]
    noise: NoiseName
    scores: ScoreSpec | None
    on_lattice: bool = True

    def alpha_of_each(self, alpha: float | None = None) -> float:
        """The failure probability of one noise level's certificate: a maximum over levels shares alpha (rule S5)."""
        total = self.alpha if alpha is None else alpha
        return total / len(self.sigma_pixel) if self.maximum_over_sigmas else total

    def procedure(self, sigma_pixel: float, *, dimension: int, alpha: float | None = None) -> Procedure:
        """For images of `dimension` values; give another `alpha` than the declared one only for what is proved, not for
        when to stop."""
        distance, scope = self._distance_and_scope(sigma_pixel, dimension)
        terms = Terms(
            sigma_pixel=sigma_pixel,
            alpha=self.alpha_of_each(alpha),
            votes=self.votes,
            radii=self.radii,
            distance=distance,
            scope=scope,
            lipschitz=self._lipschitz_terms(dimension),
        )
        return CERTIFICATES[self.certificate](terms)

    def _lipschitz_terms(self, dimension: int) -> LipschitzTerms | None:
        if self.certificate != "lipschitz" or self.scores is None:
            return None
        own = self.scores
        return LipschitzTerms(own.grid, own.weight, own.loss_cap, dimension=dimension, precision=self.precision)

    def _distance_and_scope(self, sigma_pixel: float, dimension: int) -> tuple[float, str]:
        """How far the noise is from the theorem's distribution, and which images the certificate covers."""
        noise = NOISES[self.noise](sigma_pixel)
        if self.scores and self.scores.one_path:
            path_sigmas = sigmas_on_path(self.scores.grid, self.sigma_pixel)
            return PATH_NOISES[self.noise](path_sigmas).distance(path_sigmas.index(sigma_pixel), dimension), noise.scope
        if self.scores and self.certificate == "lipschitz":
            if not self.on_lattice:
                return 0.0, FloatNoise.scope
            return lattice_distance(path_levels(self.scores.grid, taus_model=(0.0,)), dimension), noise.scope
        return noise.distance(dimension), noise.scope
