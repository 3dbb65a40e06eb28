"""Networks that a denoiser can be built around."""
