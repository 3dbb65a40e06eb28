"""Class heads that are linear in shared features: the losses of all classes without any class's image.

The output of class y is  c_skip z + c_out A_y phi,  with features phi of each pixel, a constant 1 among them. With
u = c_skip z - target, and over the pixels p  G = sum_p phi_p phi_p^T  and  M = sum_p u_p phi_p^T,

    || c_skip z + c_out A_y phi - target ||^2  =  ||u||^2 + 2 c_out <A_y, M> + c_out^2 tr(A_y G A_y^T).

G and M do not depend on the number of classes. The code adds the output of the mean head to u and subtracts the mean
from A_y: what classes have in common is nearly all, and its rounding would otherwise hide what they differ in.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Preconditioning, preconditioning

NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}  # rows x classes x c x features: on a CPU, what its cache holds


class LinearHeadsDenoiser(HeadsDenoiser):
    """EDM's preconditioning around features and the heads on them (`networks.linear_heads`).

    Outputs are not clipped: sums over pixels cannot give the losses of clipped outputs. Any function of
    the noisy image may vote; a certificate that needs outputs in [-1, 1] must refuse this one.
    """

    bounded = False

    def unclipped_heads(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        heads: Int[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "rows heads c h w"]:
        phi = with_constant(self._features(z, sigma_model)).to(z.dtype)
        chosen = self._heads(z.dtype)[slice(None) if heads is None else heads]
        with in_full_precision(z):
            predicted = torch.einsum("kcf,rfp->rkcp", chosen, phi).unflatten(3, z.shape[2:])
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        return (scales.c_skip * z)[:, None] + scales.c_out[:, None] * predicted

    def unclipped(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        share = torch.cat([label, 1 - label.sum(dim=1, keepdim=True)], dim=1).to(z.dtype)
        phi = with_constant(self._features(z, sigma_model)).to(z.dtype)
        with in_full_precision(z):
            mixed = torch.einsum("rk,kcf->rcf", share, self._heads(z.dtype))
            predicted = (mixed @ phi).view_as(z)
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        return scales.c_skip * z + scales.c_out * predicted

    def every_loss(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        targets: Float[Tensor, "rows targets c h w"],
    ) -> Float[Tensor, "rows targets classes"]:
        """|| h(z, sigma, y) - target ||^2 for each target and every class y, in double precision, from one pass."""
        phi = self.launch(self._features, z, sigma_model)
        # One target at a time, so that a row's loss for a target does not depend on how many there are (rule S1).
        losses = [self.launch(self._losses, phi, z, sigma_model, target) for target in targets.unbind(1)]
        return torch.stack(losses, dim=1)

    def _heads(self, dtype: torch.dtype) -> Float[Tensor, "heads c features"]:
        heads = self.network.heads
        assert isinstance(heads, Tensor)
        return heads.to(dtype)

    def _features(
        self, z: Float[Tensor, "rows c h w"], sigma_model: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows features h w"]:
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        features: Tensor = self.network((scales.c_in * z).to(self.network_dtype), scales.c_noise)
        return features

    def _losses(
        self,
        phi: Float[Tensor, "rows features h w"],
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        target: Float[Tensor, "rows c h w"],
    ) -> Float[Tensor, "rows classes"]:
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        with in_full_precision(z):
            heads = self._heads(z.dtype)[:-1]
            return losses_of_heads(with_constant(phi).to(z.dtype), heads, z, target, scales)


def in_full_precision(z: Tensor) -> AbstractContextManager[Any]:
    """For computations on the features: in mixed precision, rounding would hide what classes differ in."""
    return torch.autocast(z.device.type, enabled=False)


def with_constant(phi: Float[Tensor, "rows features h w"]) -> Float[Tensor, "rows features1 pixels"]:
    """The features of each pixel, followed by a 1."""
    flat = phi.flatten(2)
    return torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)


def losses_of_heads(
    phi: Float[Tensor, "rows features pixels"],
    heads: Float[Tensor, "classes c features"],
    z: Float[Tensor, "rows c h w"],
    target: Float[Tensor, "rows c h w"],
    scales: Preconditioning,
) -> Float[Tensor, "rows classes"]:
    """The formula above. Every product is of one row's matrices, so that no row's rounding depends on its place."""
    mean, c_out = heads.mean(dim=0), scales.c_out.flatten(2)
    own = heads - mean
    u = (scales.c_skip * z - target).flatten(2) + c_out * torch.bmm(mean.expand(len(phi), -1, -1), phi)
    gram, moment = c_out**2 * (phi @ phi.mT), 2 * c_out * (u @ phi.mT)
    rows_at_once = max(1, NUMBERS_AT_ONCE.get(z.device.type, 2**27) // own.numel())
    pieces = zip(gram.split(rows_at_once), moment.split(rows_at_once), strict=True)
    beyond_mean = torch.cat([_beyond_mean(own, *piece) for piece in pieces])
    return u.square().flatten(1).sum(1, dtype=torch.float64)[:, None] + beyond_mean


def _beyond_mean(
    own: Float[Tensor, "classes c features"],
    gram: Float[Tensor, "some features features"],
    moment: Float[Tensor, "some c features"],
) -> Float[Tensor, "some classes"]:
    """tr(A_y G A_y^T) + <A_y, M>, with G and M scaled as in the formula."""
    with_gram = torch.bmm(own.flatten(0, 1).expand(len(gram), -1, -1), gram).unflatten(1, own.shape[:2])
    return ((with_gram + moment[:, None]) * own).flatten(2).sum(2, dtype=torch.float64)
