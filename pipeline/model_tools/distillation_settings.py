"""How a checkpoint is distilled unless told otherwise: into which network, with which settings."""

from typing import Any, Literal

from ndc_core.models.networks.linear_heads import TRUNKS
from ndc_core.training.distillation import DistillationSpec
from pipeline.model_tools.training_presets import NO_STEPS_LIMIT

CHANNELS_STEP = 8  # of a group in the small network's normalisations
StudentNetwork = Literal["own", "small"]
OF_PHOTOGRAPHS: dict[str, Any] = {
    "max_seconds": None,
    "batch": 128,
    "learning_rate": 1e-3,
    "log_sigma_mean": -0.2,
    "augment": "flip-and-shift",
    "kept": 16,
}


def student_network(wanted: StudentNetwork | None, teacher_network: str) -> StudentNetwork:
    """The teacher's own network with heads, if it supports them; otherwise the small one.

    Raises:
        ValueError: the teacher's own is asked for, and it does not support heads.
    """
    supported = teacher_network in TRUNKS
    if wanted == "own" and not supported:
        raise ValueError(
            f"class heads do not fit the network {teacher_network}, only {', '.join(TRUNKS)}: leave out --network"
        )
    return wanted or ("own" if supported else "small")


def distillation_spec(network: StudentNetwork, settings: dict[str, Any]) -> DistillationSpec:
    """The settings that are given, and for the rest what suits the network.

    Raises:
        ValueError: a setting that makes no network or teaches nothing, or nothing that says when to end.
    """
    if network == "own":
        if "channels" in settings:
            raise ValueError("--channels is for the small network: leave it out, or add --network small")
        if not {"steps", "max_seconds"} & set(settings):
            raise ValueError("say how long to distil: --steps or --max-seconds")
        settings = {**OF_PHOTOGRAPHS, "steps": NO_STEPS_LIMIT, **settings}
    spec = DistillationSpec(**settings)
    if network == "small" and spec.channels % CHANNELS_STEP:
        raise ValueError(f"{spec.channels} channels make no network; take a multiple of {CHANNELS_STEP}")
    return spec
