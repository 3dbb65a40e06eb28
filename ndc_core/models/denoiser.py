"""The contract between a diffusion model and everything that classifies with it."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.replay import Launch, directly


@runtime_checkable
class Denoiser(Protocol):
    """A posterior mean h(z, sigma, y) ~ E[z_0 | z, y] (model space), in [-1, 1] where it is `bounded`.

    The label is a row of class weights: one-hot for a class, all zero for the unconditional
    denoiser. A value that is not finite must not come out as a bound of the range.
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def __call__(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]: ...


class DescribedDenoiser(Denoiser, Protocol):
    """A denoiser that says whether its outputs are clipped, and whether it was trained without a label."""

    bounded: bool
    knows_no_label: bool


@runtime_checkable
class EveryClass(Protocol):
    """A denoiser that gives the outputs for all classes from one forward pass."""

    def every_class(
        self, z: Float[Tensor, "rows c h w"], sigma_model: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes c h w"]: ...


@runtime_checkable
class EveryLoss(EveryClass, Protocol):
    """A denoiser that also gives the squared distances of all these outputs to targets, without computing them."""

    def every_loss(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        targets: Float[Tensor, "rows targets c h w"],
    ) -> Float[Tensor, "rows targets classes"]: ...


def clip_to_image_range(estimate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clips to [-1, 1], as the Lipschitz theorem of the paper needs; NaN and infinity become NaN."""
    # x - x is 0 for a finite x and NaN otherwise: clamp alone would turn an infinity into a valid pixel.
    return estimate.clamp(-1.0, 1.0) + (estimate - estimate)


class ClippedDenoiser:
    """Any denoiser with its outputs clipped to [-1, 1]."""

    bounded = True

    def __init__(self, denoiser: Denoiser, *, knows_no_label: bool) -> None:
        self.unclipped, self.knows_no_label = denoiser, knows_no_label
        self.image_shape, self.num_classes = denoiser.image_shape, denoiser.num_classes

    def __call__(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        return clip_to_image_range(self.unclipped(z, sigma_model, label))


class Preconditioning(NamedTuple):
    """D(z) = c_skip z + c_out F(c_in z, c_noise), for images z. Source: Karras et al. 2022, Eq. 7 and Table 1."""

    c_skip: Float[Tensor, "rows 1 1 1"]
    c_out: Float[Tensor, "rows 1 1 1"]
    c_in: Float[Tensor, "rows 1 1 1"]
    c_noise: Float[Tensor, " rows"]


def preconditioning(sigma_model: Float[Tensor, " rows"], *, sigma_data: float) -> Preconditioning:
    sigma = sigma_model.view(-1, 1, 1, 1)
    variance = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=sigma_model.log() / 4,
    )


class EDMDenoiser(nn.Module):
    """EDM's preconditioning around a network, with the output clipped where the class is `bounded`.

    The network runs in `network_dtype`, the rest in the precision of z. `knows_no_label` says whether the all-zero
    label was trained. The network is called as F(x, c_noise, label). `launch` makes the calls of the denoiser.
    """

    bounded = True

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sigma_data: float = 0.5,
        knows_no_label: bool = True,
        network_dtype: torch.dtype = torch.float32,
        launch: Launch = directly,
    ) -> None:
        super().__init__()
        self.network = network
        self.launch = launch
        self.network_dtype = network_dtype
        self.knows_no_label = knows_no_label
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.sigma_data = sigma_data

    def unclipped(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        """The preconditioned network before clipping: what training fits."""
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        predicted = self.network((scales.c_in * z).to(self.network_dtype), scales.c_noise, label)
        return scales.c_skip * z + scales.c_out * predicted.to(z.dtype)

    def forward(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        """E[z_0 | z, label]; if bounded, in [-1, 1], and NaN where the network was not finite."""
        return self.launch(self._output, z, sigma_model, label)

    def _output(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        return self.clipped(self.unclipped(z, sigma_model, label))

    def clipped(self, outputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The denoiser's output, from the preconditioned network's."""
        return clip_to_image_range(outputs) if self.bounded else outputs
