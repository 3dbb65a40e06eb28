"""Denoisers with closed forms, for tests that need to know the truth."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class GaussianDenoiser:
    """Exact denoiser of class-conditional Gaussians N(mean_y, variance I): the posterior mean is linear.

    Without a label it is the posterior mean of the mixture with equal class probabilities. It is not
    clipped: the truth it is compared with is not either.
    """

    means: Tensor  # classes, dimension
    variance: float
    image_shape: tuple[int, int, int] = field(init=False)
    num_classes: int = field(init=False)

    def __post_init__(self) -> None:
        self.means = self.means.double()
        self.num_classes, dimension = self.means.shape
        self.image_shape = (1, 1, dimension)

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        flat, sigma2 = z.double().flatten(1), sigma_model.double()[:, None] ** 2
        total = self.variance + sigma2
        mixture = torch.softmax(-(torch.cdist(flat, self.means) ** 2) / (2 * total), dim=1)
        share = torch.where(label.any(dim=1, keepdim=True), label.double(), mixture)
        mean = share @ self.means
        return ((self.variance * flat + sigma2 * mean) / total).view_as(z).float()

    def log_likelihood_ratio(self, z: np.ndarray, *, tau_model: float) -> np.ndarray:
        """log p(z | class 0) - log p(z | class 1) where z carries noise of tau_model."""
        flat, total = z.reshape(len(z), -1), self.variance + tau_model**2
        squared = [((flat - mean.numpy()) ** 2).sum(1) for mean in self.means[:2]]
        return (squared[1] - squared[0]) / (2 * total)

    def bayes_error(self, *, tau_model: float) -> float:
        """Error of the best classifier of two equally likely classes from an image with noise of tau_model."""
        distance = float((self.means[0] - self.means[1]).norm())
        d_prime = distance / (2 * math.sqrt(self.variance + tau_model**2))
        return 0.5 * math.erfc(d_prime / math.sqrt(2))

    def sample(self, label: int, count: int, *, tau_model: float, seed: int) -> np.ndarray:
        """Images of a class in model space, with noise of tau_model added."""
        std = math.sqrt(self.variance + tau_model**2)
        normal = np.random.default_rng(seed).standard_normal((count, *self.image_shape))
        return self.means[label].numpy().reshape(self.image_shape) + std * normal


def two_gaussians(*, distance: float = 1.5, variance: float = 0.09, dimension: int = 4) -> GaussianDenoiser:
    direction = torch.ones(dimension) / math.sqrt(dimension)
    return GaussianDenoiser(torch.stack([-direction, direction]) * distance / 2, variance)


class ConstantDenoiser:
    """Returns one image for each class: the vote is the class whose image is nearest to the target."""

    def __init__(self, images: Tensor) -> None:
        self.images = images  # classes, c, h, w
        self.num_classes = len(images)
        self.image_shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self.rows_seen: list[int] = []

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        self.rows_seen.append(len(z))
        return torch.einsum("rk,kchw->rchw", label, self.images)


class GaussianHeads(GaussianDenoiser):
    """The same with a head for each class: all outputs from one pass."""

    def every_class(self, z: Tensor, sigma_model: Tensor) -> Tensor:
        one_hot = torch.eye(self.num_classes)
        return torch.stack([self(z, sigma_model, row.expand(len(z), -1)) for row in one_hot], dim=1)


def many_gaussians(classes: int, *, dimension: int = 16, seed: int = 0, heads: bool = False) -> GaussianDenoiser:
    """Class means drawn at random: a denoiser that is linear in its label, and an exact likelihood of every class."""
    means = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(seed)) / 2
    return (GaussianHeads if heads else GaussianDenoiser)(means, 0.05)
