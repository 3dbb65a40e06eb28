"""The self-test of a device, on networks that break each property; and where its answer is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ndc_core.analysis.exactness import Exactness
from ndc_core.analysis.self_test import self_test
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.classifiers.unconditional import null_label
from ndc_core.noise.grid import GridSpec
from pipeline.store.devices import DeviceRecord, device_lines, exactness_line
from pipeline.workers.device_record import device_record
from tests.support.fakes import many_gaussians, two_gaussians

GRID = GridSpec(points=4, sigma_model_max=1.5)
EXACT = Exactness(0.0, 0.0, 0.0)


@dataclass
class Bent:
    """A denoiser to whose outputs `bend` adds an error, as a device may: (rows, c, h, w) in and out."""

    bend: Callable[[Tensor], Tensor]
    image_shape: tuple[int, int, int] = (1, 2, 2)
    num_classes: int = 3

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        return z / (1 + sigma_model[:, None, None, None]) + label.sum(1)[:, None, None, None] / 9 + self.bend(z)


def classifier_of(bend: Callable[[Tensor], Tensor], **more: object) -> DiffusionClassifier:
    return DiffusionClassifier(Bent(bend), "epndc", GRID, rows_per_pass=16, **more)


def by_place(z: Tensor) -> Tensor:
    return torch.arange(len(z)).view(-1, 1, 1, 1) * 1e-6


def by_company(z: Tensor) -> Tensor:
    return z.abs().sort(dim=0).values.mean(dim=0, keepdim=True).expand_as(z) * 1e-3


class ByTurn:
    """A different result at each call."""

    calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(z, self.calls * 1e-6)


def test_a_function_of_the_row_is_exact() -> None:
    exactness = self_test(classifier_of(torch.zeros_like))
    assert exactness == EXACT
    assert exactness.exact


def test_a_result_that_depends_on_its_place_is_reported() -> None:
    exactness = self_test(classifier_of(by_place))
    assert exactness.repeated == 0
    assert exactness.moved is not None
    assert 0 < exactness.moved < 1e-4
    assert not exactness.exact


def test_a_result_that_depends_on_other_rows_is_reported() -> None:
    exactness = self_test(classifier_of(by_company))
    assert (exactness.repeated, exactness.moved) == (0, 0)
    assert exactness.company
    assert not exactness.exact


def test_a_pass_that_does_not_repeat_is_reported() -> None:
    exactness = self_test(classifier_of(ByTurn()))
    assert exactness.repeated
    assert not exactness.exact


def test_the_label_gradient_is_tried_only_where_votes_use_it() -> None:
    assert self_test(classifier_of(torch.zeros_like)).gradient_repeated is None
    spec = LabelGradientSpec(steps=2, keep=2)
    assert self_test(classifier_of(torch.zeros_like, label_gradient=spec)) == replace(
        EXACT, gradient_repeated=0.0, gradient_moved=0.0
    )


def test_a_label_gradient_that_does_not_repeat_is_reported() -> None:
    class Backward(torch.autograd.Function):
        """The identity forward, and a slightly different gradient at each call."""

        calls = 0

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            Backward.calls += 1
            return gradient * (1 + Backward.calls * 1e-6)

    class Unsteady(Bent):
        def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            return super().__call__(z, sigma_model, Backward.apply(label))

    spec = LabelGradientSpec(steps=2, keep=2)
    classifier = replace(classifier_of(torch.zeros_like, label_gradient=spec), denoiser=Unsteady(torch.zeros_like))
    exactness = self_test(classifier)
    assert (exactness.repeated, exactness.moved, exactness.company) == (0, 0, 0)
    assert exactness.gradient_repeated
    assert not exactness.exact


def test_nan_does_not_end_the_self_test() -> None:
    assert self_test(classifier_of(lambda z: torch.full_like(z, torch.nan))) == EXACT
    once = ByTurn()
    exactness = self_test(classifier_of(lambda z: torch.where(once(z) < 1.5e-6, torch.nan, 0.0)))
    assert exactness.repeated == float("inf")


def test_no_pass_begins_when_patience_is_over() -> None:
    counted = ByTurn()
    exactness = self_test(classifier_of(counted), patience_seconds=0.0)
    assert exactness == Exactness()
    assert not exactness.exact  # what was not tried is not known
    assert counted.calls == 1


@pytest.mark.parametrize(
    ("classifier", "kinds"),
    [
        (DiffusionClassifier(two_gaussians(), "epndc", GRID), ["forward"]),
        (DiffusionClassifier(two_gaussians(), "apndc", GRID), ["forward"]),
        (
            DiffusionClassifier(two_gaussians(), "apndc", GRID, unconditional=null_label(two_gaussians(distance=2.0))),
            ["forward", "forward"],
        ),
        (DiffusionClassifier(many_gaussians(4, heads=True), "epndc", GRID), ["every_class"]),
        (DiffusionClassifier(many_gaussians(4, heads=True), "apndc", GRID), ["every_class", "forward"]),
        (
            DiffusionClassifier(many_gaussians(4), "dc", GRID, label_gradient=LabelGradientSpec(steps=1, keep=2)),
            ["forward", "label_gradient"],
        ),
    ],
)
def test_every_kind_of_pass_that_votes_need_is_tried(classifier: DiffusionClassifier, kinds: list[str]) -> None:
    assert [kind for kind, _ in classifier.passes] == kinds
    assert self_test(replace(classifier, rows_per_pass=8)).exact


def test_image_classifiers_and_their_denoisers_are_tried() -> None:
    class Scores:
        image_shape, num_classes = (1, 1, 4), 2

        def __call__(self, z: Tensor) -> Tensor:
            return z.flatten(1)[:, :2] + torch.arange(len(z))[:, None] * 1e-3

    plain = Baseline(Scores(), rows_per_pass=8)
    behind = Baseline(Scores(), null_label(two_gaussians()), rows_per_pass=8)
    assert [kind for kind, _ in behind.passes] == ["classify", "forward"]
    for classifier in (plain, behind):
        exactness = self_test(classifier)
        assert exactness.repeated == 0
        assert exactness.moved


def test_a_record_of_a_device_is_read_back_as_it_was_written() -> None:
    record = device_record(classifier_of(by_place))
    assert (record.kind, record.torch, record.cuda) == ("cpu", torch.__version__, "")
    assert record.name
    assert record.exactness.moved
    assert DeviceRecord.parse(record.text()) == record
    assert DeviceRecord.parse("cuda") == DeviceRecord("cuda")  # evidence from before there were records
    for damaged in ("{", "{}", '{"kind": "cpu"}', '{"kind": "cpu", "exactness": {"other": 1}}'):
        with pytest.raises(ValueError, match="is no record of a device"):
            DeviceRecord.parse(damaged)


def test_a_self_test_that_fails_ends_no_actor() -> None:
    def fail(z: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    record = device_record(classifier_of(fail))
    assert record.exactness == Exactness()
    assert exactness_line(record) == "no self-test is known"


def test_a_device_is_reported_where_it_is_not_exact_or_not_alone() -> None:
    exact = DeviceRecord("cuda", "A", "2", exactness=EXACT)
    moving = replace(exact, name="B", exactness=replace(EXACT, moved=9e-4))
    assert device_lines([(exact, 5)]) == []
    assert device_lines([(exact, 5), (replace(exact, name="C"), 1)])[1].startswith("computed on C, torch 2 (1 units)")
    (line,) = device_lines([(moving, 5)])
    assert "results move with a row's place in the pass by 0.0009 of the largest" in line
    assert "certificates hold up to near-ties" in line
