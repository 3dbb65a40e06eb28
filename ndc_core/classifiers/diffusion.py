"""The diffusion classifiers of the paper: a denoiser's scores (`formulas`) as votes and for attacks (`scoring`)."""

from jaxtyping import Float
from torch import Tensor

from ndc_core.classifiers.diffusion_scores import DiffusionScores
from ndc_core.classifiers.scoring import class_scores, score_independently, score_on_shared_path
from ndc_core.classifiers.voter import IndependentDraws, PathDraws, Prediction
from ndc_core.models.forward_passes import Task


class DiffusionClassifier(DiffusionScores):
    """A class-conditional denoiser as a classifier of noisy images: a `Voter`. Settings: see `DiffusionScores`."""

    def votes(self, draws: IndependentDraws | PathDraws) -> Task[list[Prediction]]:
        """The class with the highest score for each draw at each noise level.

        Raises (when it runs):
            NonFiniteScoreError: the denoiser returned NaN or infinity.
        """
        return score_on_shared_path(self, draws) if isinstance(draws, PathDraws) else score_independently(self, draws)

    def class_scores(
        self,
        z: Float[Tensor, "draws c h w"],
        noise: Float[Tensor, "draws steps c h w"],
        *,
        tau_model: float,
        classes: tuple[int, ...],
    ) -> Task[Float[Tensor, "draws some_classes"]]:
        """Scores on the full grid without sift."""
        return class_scores(self, z, noise, tau_model=tau_model, classes=classes)
