"""Transfers to a device and back, tested with a device whose answers come late."""

import numpy as np
import pytest
import torch

from ndc_core.models import forward_passes as passes
from ndc_core.models.forward_passes import gather
from ndc_core.models.transfers import OnItsWay, to_device, to_host
from tests.ndc_core.models.test_forward_passes import CPU, Doubling, asker


class Late:
    """An event that happens when it is waited for; until then there is nothing in the host's memory."""

    def __init__(self, host: torch.Tensor, arriving: torch.Tensor, waited: list[int]) -> None:
        self.host, self.arriving, self.waited = host, arriving, waited

    def synchronize(self) -> None:
        self.host.copy_(self.arriving)
        self.waited.append(len(self.host))


def test_numbers_arrive_as_they_were() -> None:
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(to_host(to_device(numbers, CPU)).wait().numpy(), numbers)


@pytest.mark.parametrize("passes_ahead", [1, 2, 3])
def test_an_answer_is_read_when_it_has_come_and_no_sooner(monkeypatch: pytest.MonkeyPatch, passes_ahead: int) -> None:
    waited: list[int] = []
    ahead: list[int] = []

    def late(tensor: torch.Tensor) -> OnItsWay:
        ahead.append(len(denoiser.passes) - len(waited))
        host = torch.full_like(tensor, torch.nan)
        return OnItsWay(host, Late(host, tensor.clone(), waited))

    monkeypatch.setattr(passes, "to_host", late)
    denoiser = Doubling()
    lots = [[[number, number + 1], [number]] for number in range(20, 60)]
    waiting = list(enumerate(lots))
    answers = gather(
        lambda: (lambda named: (named[0], asker(denoiser, named[1])))(waiting.pop()) if waiting else None,
        rows_per_pass=2,
        device=CPU,
        passes_ahead=passes_ahead,
    )
    assert dict(answers) == {number: [[2.0 * value for value in lot] for lot in own] for number, own in enumerate(lots)}
    assert max(ahead) == passes_ahead, "so many passes are launched before the first one's answers are waited for"
