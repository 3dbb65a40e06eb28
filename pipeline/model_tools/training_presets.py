"""Ways to train that were tried, by name: a network and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NO_STEPS_LIMIT = 10**9


@dataclass(frozen=True)
class TrainingPreset:
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the network: see `ndc_core.training.architectures`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `TrainingSpec`."""


PHOTOGRAPHS: dict[str, Any] = {
    "max_seconds": None,
    "batch": 512,
    "log_sigma_mean": -0.2,
    "augment": "flip-and-shift",
    "weight_decay": 0.01,
    "average_memory": 0.9995,
}
PRESETS = {
    # The defaults of TrainingSpec: 8x8 digits in 100 s on two cores.
    "small": TrainingPreset("small"),
    # DDPM++ of 7 million parameters.
    "cifar10-small": TrainingPreset(
        "edm-song",
        {"channel_mult": (1, 2, 2), "num_blocks": 2, "attn_resolutions": (16,)},
        {**PHOTOGRAPHS, "channels": 64, "learning_rate": 1.5e-3, "steps": 20_000},
    ),
    # DDPM++ as EDM has it for CIFAR-10, 56 million parameters.
    "cifar10": TrainingPreset(
        "edm-song",
        {"channel_mult": (2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,)},
        {**PHOTOGRAPHS, "channels": 128, "learning_rate": 1e-3, "steps": 200_000},
    ),
}
