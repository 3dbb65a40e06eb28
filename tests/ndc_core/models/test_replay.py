"""A replayed capture gives what the calls would give."""

import pytest
import torch
from torch import Tensor

from ndc_core.models.replay import Function, Recording, Replays, directly


class OnTheHost:
    """Records as CUDA does: a replay reads the inputs' memory and writes over the output."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, function: Function, inputs: tuple[Tensor, ...]) -> Recording:
        self.captures += 1
        held = tuple(tensor.clone() for tensor in inputs)
        output = function(*held)
        return Recording(held, lambda: output.copy_(function(*held)), output)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def squared(x: Tensor) -> Tensor:
    return x * x


@torch.inference_mode()
def test_calls_of_one_shape_are_captured_at_the_third_and_replayed() -> None:
    capture = OnTheHost()
    replays = Replays(capture)
    results = []
    for index in range(6):
        results.append(replays(doubled, torch.full((3,), float(index))))
        assert capture.captures == int(index >= 2)
    # No result is changed by a later call.
    assert [result.tolist() for result in results] == [[2.0 * index] * 3 for index in range(6)]


@torch.inference_mode()
def test_another_shape_is_called_directly_and_starts_the_count_again() -> None:
    capture = OnTheHost()
    replays = Replays(capture)
    for rows in (3, 3, 3, 3, 5, 3, 5, 3, 5):
        assert replays(doubled, torch.ones(rows)).tolist() == [2.0] * rows
    assert capture.captures == 1


@torch.inference_mode()
def test_functions_are_told_apart() -> None:
    replays = Replays(OnTheHost())
    for _ in range(4):
        assert replays(doubled, torch.tensor([3.0])).tolist() == [6.0]
        assert replays(squared, torch.tensor([3.0])).tolist() == [9.0]


class Times:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def of(self, x: Tensor) -> Tensor:
        return self.factor * x


@torch.inference_mode()
def test_one_method_of_two_objects_is_told_apart() -> None:
    replays, two, three = Replays(OnTheHost()), Times(2.0), Times(3.0)
    for _ in range(4):
        assert replays(two.of, torch.ones(1)).tolist() == [2.0]
        assert replays(three.of, torch.ones(1)).tolist() == [3.0]


def test_what_autograd_follows_is_never_captured() -> None:
    capture = OnTheHost()
    replays = Replays(capture)
    for _ in range(4):
        x = torch.ones(2, requires_grad=True)
        replays(doubled, x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [2.0, 2.0]
    assert capture.captures == 0


@torch.inference_mode()
def test_a_capture_that_fails_is_reported_once_and_the_calls_go_on() -> None:
    tries = []

    def failing(function: Function, inputs: tuple[Tensor, ...]) -> Recording:
        tries.append(function)
        raise RuntimeError("not while capturing")

    replays = Replays(failing)
    for _ in range(2):
        replays(doubled, torch.ones(1))
    with pytest.warns(UserWarning, match=r"kernel by kernel: their capture failed \(not while capturing\)"):
        assert replays(doubled, torch.ones(1)).tolist() == [2.0]
    assert replays(doubled, torch.ones(1)).tolist() == [2.0]  # a second warning would be an error
    assert tries == [doubled]


def test_directly_is_a_call() -> None:
    assert directly(doubled, torch.ones(1)).tolist() == [2.0]
