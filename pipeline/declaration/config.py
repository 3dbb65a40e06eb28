"""One frozen, validated description of a run, read from TOML."""

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic.dataclasses import dataclass

from ndc_core.certificates.registry import CERTIFICATES
from ndc_core.classifiers.baseline_settings import BASELINES, refuse_steps
from ndc_core.classifiers.formulas import CLASSIFIERS, refuse_combination
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
from ndc_core.models.precision import Precision
from ndc_core.noise.grid import WEIGHTS, GridSpec, build_grid
from ndc_core.noise.smoothing import LEVELS, NoiseName
from ndc_core.space import sigma_to_model
from pipeline.data.datasets import DatasetSpec
from pipeline.data.decoding import RESAMPLING
from pipeline.data.formats import FORMATS
from pipeline.declaration.order import Order
from pipeline.declaration.procedure import ProcedureSpec, ScoreSpec

STRICT = ConfigDict(extra="forbid")
# Of an image for which the most can be certified: the larger the image, the smaller the Lipschitz constant.
LARGEST_DIMENSION = 10**9
MOST_SIGMAS = 7.8  # no radius reaches further: the bound on a probability would have to exceed 1 - 2^-48
Device = Literal["auto", "cpu", "cuda"]
# Keys whose values are names of a registry.
NAMES_OF: dict[str, Collection[str]] = {
    "dataset.format": FORMATS,
    "dataset.filter": RESAMPLING,
    "classifier.weight": WEIGHTS,
    "certificate.method": CERTIFICATES,
}


class ConfigError(ValueError):
    """A configuration that cannot be run: what, where, remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, config=STRICT)
class GridConfig(GridSpec):
    pass


@dataclass(frozen=True, config=STRICT)
class SiftConfig(SiftSpec):
    grid: GridConfig


@dataclass(frozen=True, config=STRICT)
class LabelGradientConfig(LabelGradientSpec):
    pass


@dataclass(frozen=True, config=STRICT)
class RaceConfig(RaceSpec):
    pass


@dataclass(frozen=True, config=STRICT)
class DatasetConfig(DatasetSpec):
    pass


class DiffusionConfig(Section):
    """docs/cost.md says what sift, label_gradient, race and one_path save."""

    name: str
    """Which diffusion classifier votes."""
    weight: str
    """Weight of a level in the score."""
    grid: GridConfig
    """Noise levels of the score."""
    sift: SiftConfig | None = None
    """Drop classes on a grid of its own first; left out, none are."""
    label_gradient: LabelGradientConfig | None = None
    """Instead of a sift, order all classes by the gradient of the label."""
    race: RaceConfig | None = None
    """Let classes leave on paired evidence; left out, all stay."""
    one_path: bool = False
    """One path of noise for all of `sigma_pixel`: for `epndc` and `apndc` on explicit `grid.levels`."""
    loss_cap: float | None = Field(default=None, gt=0)
    """Largest squared error of a level, for each dimension: for the lipschitz certificate."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in CLASSIFIERS:
            known = ", ".join((*CLASSIFIERS, *BASELINES))
            raise ValueError(f"classifier.name {name!r} is unknown; there are: {known}")
        return name


class PlainConfig(Section):
    name: Literal["plain"]
    """The image classifier `model` votes on noisy images as they are: randomized smoothing."""


class DenoiseConfig(Section):
    name: Literal["denoise"]
    """`model`, a denoiser, takes the noise away, and an image classifier votes on what it makes of the image."""
    network: str
    """Folder or URI of the image classifier, or `module:function`."""
    steps: int = Field(default=1, ge=1)
    """In how many steps noise is taken away."""
    paths: int = Field(default=1, ge=1)
    """How often, with other randomness in between; the majority of the classes counts."""

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        refuse_steps(self.steps, self.paths)
        return self


def variant_of(classifier: Any) -> str:
    """The section of a classifier's keys: that of a baseline's name, or that of all diffusion classifiers."""
    name = classifier.get("name") if isinstance(classifier, dict) else classifier.name
    return name if name in BASELINES else "diffusion"


ClassifierConfig = Annotated[
    Annotated[DiffusionConfig, Tag("diffusion")]
    | Annotated[PlainConfig, Tag("plain")]
    | Annotated[DenoiseConfig, Tag("denoise")],
    Discriminator(variant_of),
]


class VotesConfig(Section):
    """How many votes each image has at each noise level."""

    selection: int = Field(ge=1)
    """Votes that name the class."""
    estimation: int = Field(ge=1)
    """Fresh votes that bound its probability; the most of them, where a certificate may stop early."""
    per_unit: int | None = Field(default=None, ge=1)
    """Votes in a work unit; left out, a run finds out when it first starts how many take about three minutes."""
    ends: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Further draws at which a unit ends: a sweep sets them, so that runs of fewer votes share those of more."""


class CertificateConfig(Section):
    """What is proved of each image, and how surely; docs/certificates.md derives it."""

    method: str
    """Which certificate."""
    alpha: float = Field(gt=0, lt=1)
    """Probability with which the certificate of an image may be wrong."""
    radii: tuple[float, ...] = Field(min_length=1)
    """Radii of the table, and those that the sequential certificate aims at; pixels in [0, 1], not negative."""
    maximum_over_sigmas: bool = False
    """Share alpha among the noise levels, for a row with each image's largest radius."""
    precision: float = Field(default=0.1, gt=0, lt=1)
    """How near the lipschitz radius must come to that of the mean margin."""


class ComputeConfig(Section):
    """How the network is run, where, and by how many actors; the last four keys may change on resume."""

    rows_per_pass: int | None = Field(default=None, ge=1)
    """Rows of every forward pass; left out, a run searches for the fastest when it first starts."""
    precision: Precision = "float32"
    """Of the network; all around it is single or double precision. `tf32` rounds the factors of products on GPUs that
    can, and is `float32` elsewhere."""
    channels_last: bool = False
    """Layout of images in memory."""
    compile: bool = False
    """Run the network through `torch.compile`."""
    threads_per_actor: int = Field(default=1, ge=1)
    """Threads, and CPUs, of an actor."""
    device: Device = "auto"
    """`auto` takes GPUs where Ray sees some, and on resume what the run began on; `cpu` at most counts them."""
    gpus_per_actor: float | None = Field(default=None, ge=0, le=1)
    """GPU of an actor, which may be a fraction; left out, a whole one where GPUs are used."""
    actors: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Their number, or the fewest and the most: the pool grows as nodes come; left out, one for each CPU (or GPU)."""
    stuck_seconds: float = Field(default=1800, gt=0)
    """An actor that was not heard from for this long is replaced."""

    @model_validator(mode="after")
    def _fewest_before_most(self) -> Self:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors are the fewest and the most: {list(self.actors)} is the wrong way round")
        return self

    @model_validator(mode="after")
    def _cuda_needs_gpus(self) -> Self:
        if self.device == "cuda" and self.gpus_per_actor == 0:
            raise ValueError("device 'cuda' needs GPUs, and gpus_per_actor is 0; leave that out")
        return self

    @property
    def grows(self) -> bool:
        """Whether actors may be added while the run goes on, on nodes that join."""
        return isinstance(self.actors, tuple) and self.actors[0] < self.actors[1]

    def bounds(self, room: int) -> tuple[int, int]:
        """The fewest and the most actors, where there is room for `room` of them now."""
        if isinstance(self.actors, tuple):
            return self.actors
        return self.actors or room, self.actors or room


class RunConfig(Section):
    seed: int = Field(default=0, ge=0)
    """From which all noise of the run follows. Every preset has the same; an independent confirmation needs another."""
    model: str
    """Folder or URI of a checkpoint, also `hf://ORG/NAME`: a denoiser, or for `plain` an image classifier. Or
    `module:function`, a function of yours that returns one."""
    unconditional: str = "null_label"
    """What knows images without a label, for apndc and `denoise`: `null_label`, `label_mean`, `blended_label`, or
    another model."""
    sigma_pixel: tuple[float, ...] = Field(min_length=1)
    """Noise levels, for pixels in [0, 1]: above 0, and 0 alone for the lipschitz certificate."""
    noise: NoiseName = "integer"
    """Of the image. `integer` lies on the grid of 8-bit images and is exact; `none` is for the lipschitz certificate,
    whose steps have such noise of their own."""
    order: Order = "data"
    """How images are ordered: as the data have them, or `random`, drawn from the seed, so that the first ones are a
    sample of all. It decides no certificate, and a run keeps it."""
    experiment: str = "ndc"
    """The MLflow experiment."""
    tracking: Literal["mlflow", "none"] = "mlflow"
    """Where runs are compared; with `none` MLflow is not needed, and told nothing. It may change on resume."""
    sweep: str | None = Field(default=None, min_length=1)
    """A name under which runs that belong together are found in MLflow."""
    dataset: DatasetConfig
    """The images."""
    classifier: ClassifierConfig
    """What votes."""
    votes: VotesConfig
    """How often."""
    certificate: CertificateConfig
    """What the votes prove."""
    compute: ComputeConfig = ComputeConfig()
    """Where and how it is computed."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for key, known in NAMES_OF.items():
            section, _, name = key.partition(".")
            value = getattr(getattr(self, section), name, None)  # not every variant of a section has every key
            if value is not None and value not in known:
                raise ValueError(f"{key} {value!r} is unknown; there are: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _noise_levels_fit_the_grids(self) -> Self:
        if len(set(self.sigma_pixel)) != len(self.sigma_pixel):
            raise ValueError("sigma_pixel names a level twice")
        own = self.diffusion
        grids = [own.grid] + ([own.sift.grid] if own.sift else []) if own else []
        for sigma in self.sigma_pixel:
            if self.certificate.method != "lipschitz" and not 0 < sigma < 100:
                raise ValueError(f"sigma_pixel {sigma} is out of range: it must lie between 0 and 100")
            if self.noise == "integer" and sigma * MOST_SIGMAS < 1 / LEVELS:
                raise ValueError(
                    f"sigma_pixel {sigma:g} is too small for noise = 'integer': no radius that it can certify reaches "
                    f"the nearest other 8-bit image, {1 / LEVELS:.4f} away; raise it to {1 / LEVELS / MOST_SIGMAS:.1g}"
                )
            for grid in grids:
                build_grid(grid, tau_model=0.0 if own and own.name == "dc" else sigma_to_model(sigma))
        return self

    @model_validator(mode="after")
    def _the_levers_go_together(self) -> Self:
        if c := self.diffusion:
            refuse_combination(c.name, c.grid, sift=c.sift, label_gradient=c.label_gradient, one_path=c.one_path)
        return self

    @property
    def diffusion(self) -> DiffusionConfig | None:
        """The classifier, unless it is a baseline."""
        return self.classifier if isinstance(self.classifier, DiffusionConfig) else None

    @property
    def one_path(self) -> bool:
        return self.diffusion is not None and self.diffusion.one_path

    @property
    def follows_images(self) -> bool:
        """Whether an image's draws depend on its votes so far: when they stop, or which class a vote is about."""
        return self.certificate.method != "cohen" or bool(self.diffusion and self.diffusion.race)

    @model_validator(mode="after")
    def _the_certificate_fits_the_classifier(self) -> Self:
        lipschitz = self.certificate.method == "lipschitz"
        if lipschitz and (
            self.classifier.name != "dc"
            or self._leaves_classes_out
            or self.sigma_pixel != (0.0,)
            or self.noise != "none"
        ):
            raise ValueError(
                "the lipschitz certificate is of the scores of all classes by dc, on images without noise: set "
                "classifier.name = 'dc', sigma_pixel = [0.0], noise = 'none' and no classifier.sift, "
                ".label_gradient or .race, or start from the preset lipschitz"
            )
        if not lipschitz and self.noise == "none":
            raise ValueError(
                f"the {self.certificate.method} certificate needs noise: set noise to 'integer' or 'float'"
            )
        if self.certificate.maximum_over_sigmas and len(self.sigma_pixel) < 2:
            raise ValueError(
                "certificate.maximum_over_sigmas needs at least two sigma_pixel: it splits alpha among them"
            )
        return self

    @property
    def _leaves_classes_out(self) -> bool:
        own = self.diffusion
        return own is not None and any((own.sift, own.label_gradient, own.race))

    @property
    def reach(self) -> float:
        """The radius that no certificate exceeds, whatever is drawn."""
        dimension = LARGEST_DIMENSION if self.certificate.method == "lipschitz" else 1
        spec = self.procedure_spec
        return max(spec.procedure(sigma, dimension=dimension).largest_radius for sigma in self.sigma_pixel)

    @property
    def procedure_spec(self) -> ProcedureSpec:
        own, certificate = self.diffusion, self.certificate
        scores = ScoreSpec(own.grid, own.weight, own.loss_cap, own.one_path) if own else None
        return ProcedureSpec(
            certificate.method,
            certificate.alpha,
            certificate.maximum_over_sigmas,
            self.votes.estimation,
            certificate.radii,
            certificate.precision,
            self.sigma_pixel,
            self.noise,
            scores,
        )

    @model_validator(mode="after")
    def _something_can_be_certified(self) -> Self:
        alpha, votes, reach = self.certificate.alpha, self.votes.estimation, self.reach
        most = math.floor(1000 * reach) / 1000
        for radius in self.certificate.radii:
            if radius < 0:
                raise ValueError(f"certificate.radii holds {radius}; radii are not negative")
            if reach == 0 or radius > reach:
                raise ValueError(
                    f"radius {radius:g} can never be certified: if all {votes:,} estimation votes agree at "
                    f"alpha {alpha:g} and sigma_pixel {max(self.sigma_pixel):g}, the radius is {most:.3f}; "
                    "raise votes.estimation, alpha or sigma_pixel, or drop the radius from certificate.radii"
                )
        return self

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
