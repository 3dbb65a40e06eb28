"""Class heads: a denoiser that gives the outputs for all classes in one forward pass."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.models.denoiser import EDMDenoiser, preconditioning


class HeadsDenoiser(EDMDenoiser):
    """EDM's preconditioning around a network with a head for each class and a last one for no class.

    The network is called as F(x, c_noise, heads): which of its heads to compute, all if None.
    """

    def unclipped_heads(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        heads: Int[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "rows heads c h w"]:
        """The preconditioned heads before clipping: what training fits."""
        scales = preconditioning(sigma_model, sigma_data=self.sigma_data)
        predicted = self.network((scales.c_in * z).to(self.network_dtype), scales.c_noise, heads)
        predicted = predicted.to(z.dtype).unflatten(1, (-1, z.shape[1]))
        return (scales.c_skip * z)[:, None] + scales.c_out[:, None] * predicted

    def unclipped(
        self,
        z: Float[Tensor, "rows c h w"],
        sigma_model: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        """The heads mixed by the label; the head for no class gets 1 minus the sum of its weights."""
        share = torch.cat([label, 1 - label.sum(dim=1, keepdim=True)], dim=1).to(z.dtype)
        return torch.einsum("rk,rkchw->rchw", share, self.unclipped_heads(z, sigma_model))

    def every_class(
        self, z: Float[Tensor, "rows c h w"], sigma_model: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes c h w"]:
        """E[z_0 | z, y] for every class y from one forward pass; if bounded, in [-1, 1] or NaN."""
        return self.launch(self._every_class, z, sigma_model)

    def _every_class(
        self, z: Float[Tensor, "rows c h w"], sigma_model: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes c h w"]:
        return self.clipped(self.unclipped_heads(z, sigma_model)[:, :-1])
