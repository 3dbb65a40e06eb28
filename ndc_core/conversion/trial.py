"""A trial of a denoiser on a few images before it is kept: it refuses nonsense and reports doubts."""

import torch

from ndc_core.models.denoiser import EDMDenoiser

# Plain black, grey and white images, at noise that the preconditioning alone leaves as it is (to 0.92).
PLAIN, SIGMA_OF_PLAIN = (-1.0, 0.0, 1.0), 0.1
# Grey again at both ends of EDM's training levels.
SIGMA_ENDS = (0.002, 80.0)
# A small network trained on CIFAR-10 leaves 0.04, and 0.71 if it is told the noise level on another scale; networks of
# 8 x 8 digits, which are nowhere plain, leave as much as 0.8, so a high share is reported and not refused.
MOST_NOISE_LEFT = 0.5


class TrialError(ValueError):
    """A network that does not run on its images, or whose outputs are not images."""


@torch.inference_mode()
def try_out(denoiser: EDMDenoiser) -> float:
    """The share of the noise's variance that is left in the plain image that the denoiser does best on.

    Raises:
        TrialError: it fails, or gives images of another shape, or values that are not finite.
    """
    levels = [*PLAIN, *[0.0] * len(SIGMA_ENDS)]
    clean = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *denoiser.image_shape)
    sigma = torch.tensor([*[SIGMA_OF_PLAIN] * len(PLAIN), *SIGMA_ENDS])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * sigma.view(-1, 1, 1, 1)
    label = torch.zeros(len(sigma), denoiser.num_classes)
    if denoiser.num_classes:
        label[torch.arange(len(sigma)), torch.arange(len(sigma)) % denoiser.num_classes] = 1
    try:
        # One at a time: the memory between layers grows with the rows of a pass.
        rows = zip(*((part.split(1)) for part in (clean + noise, sigma, label)), strict=True)
        denoised = torch.cat([denoiser.unclipped(*row) for row in rows])
    except Exception as error:  # a network may raise anything on images that it was not built for
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise TrialError(f"its network does not run on images of shape {denoiser.image_shape}: {first}") from error
    if denoised.shape != clean.shape:
        raise TrialError(f"its network makes images of shape {tuple(denoised.shape[1:])} of {denoiser.image_shape}")
    bad = dict.fromkeys(sigma[~denoised.isfinite().flatten(1).all(dim=1)].tolist())
    if bad:
        raise TrialError(
            f"its outputs are not finite at noise sigma_model {', '.join(f'{level:g}' for level in bad)}: damaged "
            "weights, or a schedule that is not the network's"
        )
    left = ((denoised - clean) ** 2).flatten(1).mean(dim=1) / (noise**2).flatten(1).mean(dim=1)
    return float(left[: len(PLAIN)].min())
