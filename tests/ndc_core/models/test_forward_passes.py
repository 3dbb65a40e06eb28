"""Rows of many askers in passes of one shape."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ndc_core.models.forward_passes import Ask, gather, in_turn

CPU = torch.device("cpu")


class Doubling:
    """h(z) = 2 z; remembers how many rows each pass had, and fails at a value of 13."""

    image_shape, num_classes = (1, 1, 1), 2

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __call__(self, z, sigma_model, label):
        self.passes.append(len(z))
        if (z == 13).any():
            raise RuntimeError("thirteen")
        return 2 * z


def asker(denoiser, values: list[list[int]]):
    """Asks for several lots of rows, one after the other; returns the answers."""
    answers = []
    for lot in values:
        z = torch.tensor(lot, dtype=torch.float32).view(-1, 1, 1, 1)

        def inputs(rows, z=z):
            return z[rows], torch.ones(len(z[rows])), torch.zeros(len(z[rows]), 2)

        answer = yield Ask(
            "forward", denoiser, len(lot), inputs, lambda output, rows: output.flatten(1)[:, 0], on_host=True
        )
        answers.append(answer.tolist())
    return answers


@settings(max_examples=60, deadline=None)
@given(
    lots=st.lists(st.lists(st.lists(st.integers(14, 99), min_size=1, max_size=9), max_size=4), max_size=7),
    rows_per_pass=st.integers(1, 12),
    passes_ahead=st.integers(1, 3),
)
def test_everyone_is_answered_in_full_and_passes_have_one_shape(lots, rows_per_pass: int, passes_ahead: int) -> None:
    denoiser, waiting = Doubling(), list(enumerate(lots))
    tasks = gather(
        lambda: (lambda named: (named[0], asker(denoiser, named[1])))(waiting.pop()) if waiting else None,
        rows_per_pass=rows_per_pass,
        device=CPU,
        passes_ahead=passes_ahead,
    )
    answers = dict(tasks)
    assert answers == {index: [[2.0 * value for value in lot] for lot in own] for index, own in enumerate(lots)}
    assert set(denoiser.passes) <= {rows_per_pass}


def test_rows_of_several_askers_share_passes() -> None:
    denoiser = Doubling()
    waiting = [(index, asker(denoiser, [[14] * 3] * 4)) for index in range(4)]
    answers = dict(gather(in_turn(waiting), rows_per_pass=6, device=CPU))
    assert len(answers) == 4
    assert len(denoiser.passes) == 4 * 4 * 3 // 6, "every pass was full"


def test_a_task_that_becomes_known_when_another_ends_is_run() -> None:
    denoiser, waiting = Doubling(), [(0, [[14]])]
    ended = []
    for name, _ in gather(
        lambda: (lambda named: (named[0], asker(denoiser, named[1])))(waiting.pop()) if waiting else None,
        rows_per_pass=4,
        device=CPU,
    ):
        ended.append(name)
        if name < 5:
            waiting.append((name + 1, [[14]] * (name % 2)))
    assert ended == list(range(6))


def test_a_failing_pass_ends_those_who_asked_and_nobody_else() -> None:
    denoiser = Doubling()
    waiting = [("late", asker(denoiser, [[15, 16], [17]])), ("bad", asker(denoiser, [[13, 14]]))]
    answers = dict(gather(in_turn(waiting), rows_per_pass=2, device=CPU))
    assert isinstance(answers["bad"], RuntimeError)
    assert answers["late"] == [[30.0, 32.0], [34.0]]


def test_gradients_reach_the_label_row_by_row() -> None:
    class Linear:
        image_shape, num_classes = (1, 1, 2), 3
        images = torch.arange(6.0).view(3, 1, 1, 2)

        def __call__(self, z, sigma_model, label):
            return torch.einsum("rk,kchw->rchw", label, self.images) + z

    z = torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 1, 2)

    def inputs(rows):
        return z[rows], torch.ones(len(z[rows])), torch.full((len(z[rows]), 3), 1 / 3)

    def task():
        return (
            yield Ask("label_gradient", Linear(), 3, inputs, lambda output, rows: output.square().flatten(1).sum(1))
        )

    waiting = [(None, task())]
    with torch.inference_mode():  # as in an actor
        ((_, gradients),) = gather(in_turn(waiting), rows_per_pass=2, device=CPU)
    h = z.flatten(1) + torch.tensor([2.0, 3.0])
    np.testing.assert_allclose(gradients, 2 * h @ Linear.images.view(3, 2).T, rtol=1e-5)
