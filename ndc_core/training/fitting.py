"""Fitting a network to a loss, step by step: schedule, average of the weights, and a state to resume from."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ndc_core.training.augmentation import AUGMENTATIONS

Trained = TypeVar("Trained", bound=nn.Module)

STEPS_BETWEEN_REPORTS = {"cpu": 1, "cuda": 20}  # reading a loss waits for the GPU
WARM_UP_STEPS = 100
LOSS_MEMORY = 0.98


class DivergedError(RuntimeError):
    """The loss or a weight is not finite any more: further steps would be useless."""


@dataclass(frozen=True)
class FitSpec:
    """How to fit a network. Ends after `steps`, or at `max_seconds` on a slow machine: the learning rate follows the
    nearer of the two, so that it always ends at zero. The result is reproducible if the steps end it."""

    steps: int = 2000
    max_seconds: float | None = 100.0
    batch: int = 192
    learning_rate: float = 2e-3
    augment: str = "jitter"
    augment_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment {self.augment!r} is unknown; there are: {', '.join(AUGMENTATIONS)}")


@dataclass(frozen=True)
class Machine:
    """Where and how to train: bfloat16 in the products and float32 elsewhere on CUDA, float32 on a CPU."""

    device: str = "cpu"
    channels_last: bool = False
    compile: bool = False

    def mixed(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)


ONE_CPU = Machine()


@dataclass(frozen=True)
class TrainingProgress:
    step: int
    share_done: float
    loss: float
    seconds: float
    seconds_left: float
    images_per_second: float


class Fitting(Generic[Trained]):
    """A network in training: its weights, their moving average, the optimiser, and the state of all that is random.

    `pace` gives some parameters another learning rate, as a multiple of the others'.
    """

    def __init__(
        self,
        network: Trained,
        *,
        spec: FitSpec,
        generator: torch.Generator,
        machine: Machine = ONE_CPU,
        pace: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        average_memory: float = 0.999,
    ) -> None:
        self.network, self.average = network, copy.deepcopy(network)
        self.spec, self.generator, self.machine, self.average_memory = spec, generator, machine, average_memory
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            groups.setdefault((pace or {}).get(name, 1.0), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "pace": factor} for factor, parameters in groups.items()],
            lr=spec.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=machine.device == "cuda",
        )
        self.step, self.seconds, self.share_done, self.ended = 0, 0.0, 0.0, False
        self.mean_loss = torch.tensor(math.nan, dtype=torch.float64, device=machine.device)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, for `resume`."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "share_done": self.share_done,
            "mean_loss": self.mean_loss,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.share_done = state["step"], state["seconds"], state["share_done"]
        self.mean_loss = state["mean_loss"].to(self.machine.device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())

    def refuse_non_finite(self) -> None:
        """Raises DivergedError for a weight that is not finite."""
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise DivergedError(f"a weight is not finite after step {self.step:,}")

    def run(
        self,
        batch_loss: Callable[[], Float[Tensor, ""]],
        *,
        on_step: Callable[[TrainingProgress], None],
        watch: Callable[["Fitting[Trained]"], None] = lambda fitting: None,
    ) -> Trained:
        """Takes steps until steps or time are used up, or `watch` sets `ended`; returns the average of the weights.

        On a GPU, `on_step` and `watch` are called after every few steps.

        Raises:
            DivergedError: the mean loss is not finite.
        """
        began, before = time.monotonic() - self.seconds, self.step
        first: float | None = None  # the first step is slow: it compiles and warms up
        while self.share_done < 1 and not self.ended:
            self._take_step(batch_loss())
            self.seconds = time.monotonic() - began
            self.share_done = self._share()
            first = self.seconds if first is None else first
            if self.step % STEPS_BETWEEN_REPORTS[self.machine.device] == 0 or self.share_done >= 1:
                on_step(self._progress(began, first, before))
                watch(self)
        return self.average.eval().requires_grad_(False)

    def _share(self) -> float:
        of_time = self.seconds / self.spec.max_seconds if self.spec.max_seconds else 0.0
        return max(self.step / self.spec.steps, of_time)

    def _take_step(self, loss: Float[Tensor, ""]) -> None:
        warm_up = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        rate = self.spec.learning_rate * warm_up * (1 + math.cos(math.pi * self.share_done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        memory = min(self.average_memory, self.step / (self.step + 10))
        update = get_ema_multi_avg_fn(memory)
        update([*self.average.parameters()], [weight.detach() for weight in self.network.parameters()], self.step)
        now = loss.detach().double()
        self.mean_loss = now if self.step == 1 else LOSS_MEMORY * self.mean_loss + (1 - LOSS_MEMORY) * now

    def _progress(self, began: float, first: float, before: int) -> TrainingProgress:
        loss = self.mean_loss.item()  # waits for a GPU
        if not math.isfinite(loss):
            raise DivergedError(f"the mean loss is {loss} after step {self.step:,}")
        self.seconds = time.monotonic() - began
        steps = self.step - before
        a_step = (self.seconds - first) / (steps - 1) if steps > 1 else first
        left = (self.spec.steps - self.step) * a_step
        if self.spec.max_seconds:
            left = min(left, self.spec.max_seconds - self.seconds)
        share, rate = min(1.0, self.share_done), self.spec.batch / max(a_step, 1e-9)
        return TrainingProgress(self.step, share, loss, self.seconds, max(0.0, left), images_per_second=rate)
