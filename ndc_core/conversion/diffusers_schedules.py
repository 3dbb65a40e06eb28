"""Schedulers of diffusers: which of them are understood here, and what a network's timesteps mean by them."""

import inspect
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ndc_core.models.networks.diffusers_unet import PREDICTIONS, DiffusersError, diffusers

SCHEDULER_FILE = "scheduler_config.json"
# Samplers of one kind of model: the network sees sqrt(a) x + sqrt(1 - a) noise, a the product of 1 - beta up to a step.
VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
)
OTHERS = {
    "CMStochasticIterative": "of a consistency model, which does not give the mean of the clean image",
    "LCM": "of a consistency model, which does not give the mean of the clean image",
    "TCD": "of a consistency model, which does not give the mean of the clean image",
    "ScoreSdeVe": "variance-exploding",
    "KarrasVe": "variance-exploding",
    "EDM": "EDM's preconditioning around a network of diffusers",
    "CosineDPM": "EDM's preconditioning around a network of diffusers",
    "FlowMatch": "of flow matching",
}
# Fields that say which noise a timestep means.
OF_BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# Fields that say what the network predicts: the second is from before version 0.11.
OF_PREDICTION = ("prediction_type", "predict_epsilon")
# Fields with the only values that are understood.
ONLY = {"use_flow_sigmas": False, "timestep_type": "discrete", "shift_terminal": None}
# Fields of samplers: they choose steps between noise and image, and change no output of the network.
OF_SAMPLING = (
    "algorithm_type",
    "clip_sample",
    "clip_sample_range",
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "eta",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "predict_x0",
    "predictor_order",
    "sample_max_value",
    "set_alpha_to_one",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "tau_func",
    "tensor_format",
    "thresholding",
    "time_shift_type",
    "timestep_spacing",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
)


def read_schedule(settings: dict[str, Any], path: Path) -> tuple[Float[Tensor, " steps"], str, str]:
    """The logarithms of sigma_model of each timestep, what the network predicts, and the scheduler's class.

    Raises:
        DiffusersError: it is not variance-preserving, or something in it is not understood.
    """
    try:
        name = _class_of(settings)
        _refuse_what_is_not_understood(settings)
        return _log_sigmas(name, settings), _prediction(settings), name
    except ValueError as error:
        raise DiffusersError(f"{path}: {error}") from error


def _class_of(settings: dict[str, Any]) -> str:
    name = settings.get("_class_name")
    if name in VARIANCE_PRESERVING:
        return str(name)
    kind = next((f", {meaning}," for start, meaning in OTHERS.items() if str(name).startswith(start)), "")
    raise ValueError(
        f"the scheduler is a {name}{kind} and not one of a variance-preserving schedule with betas, the only kind "
        f"whose timesteps and outputs are understood here (as {', '.join(VARIANCE_PRESERVING[:3])})"
    )


def _refuse_what_is_not_understood(settings: dict[str, Any]) -> None:
    for key, value in ONLY.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{key} is {settings[key]!r}: its timesteps are no steps of a schedule with betas")
    known = {*OF_BETAS, *OF_PREDICTION, *ONLY, *OF_SAMPLING}
    unknown = [key for key, value in settings.items() if key[:1] != "_" and key not in known and value is not None]
    if unknown:
        raise ValueError(
            f"it is unknown whether {', '.join(unknown)} changes what a timestep means: remove it if it only concerns "
            "sampling"
        )


def _prediction(settings: dict[str, Any]) -> str:
    old = settings.get("predict_epsilon")
    prediction = settings.get("prediction_type") or ("sample" if old is False else "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type {prediction!r} is unknown; there are: {', '.join(PREDICTIONS)}")
    if old is not None and old != (prediction == "epsilon"):
        raise ValueError(f"predict_epsilon {old} contradicts prediction_type {prediction!r}")
    return str(prediction)


def _log_sigmas(name: str, settings: dict[str, Any]) -> Float[Tensor, " steps"]:
    kind = diffusers(name)
    known = inspect.signature(kind.__init__).parameters
    given = {key: settings[key] for key in OF_BETAS if settings.get(key) is not None}
    if ignored := [key for key, value in given.items() if key not in known and value]:
        raise ValueError(f"a {name} has no {', '.join(ignored)}: the settings are of another scheduler")
    try:
        made = kind(**{key: value for key, value in given.items() if key in known})
        kept = made.alphas_cumprod.double()
    except Exception as error:  # the class may raise anything
        raise ValueError(f"{name} cannot be made with these settings: {error}") from error
    steps, most = given.get("num_train_timesteps", len(kept)), torch.finfo(torch.float32).max
    # The logarithm is infinite if the first step has no noise, or the last nothing but noise.
    log_sigmas = (((1 - kept) / kept).log() / 2).float().clamp(-most, most)
    if len(kept) != steps or len(kept) < 2 or not bool((log_sigmas.diff() > 0).all()):
        raise ValueError(
            f"its {len(kept):,} betas are not a schedule of {steps} steps in which noise grows: beta_start, beta_end, "
            "beta_schedule, trained_betas or num_train_timesteps are wrong"
        )
    return log_sigmas
