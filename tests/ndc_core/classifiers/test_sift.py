import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndc_core.classifiers.sift import SiftSpec, sift
from ndc_core.noise.grid import GridSpec


def run(losses, *, threshold, keep):
    """The classes that survive, with losses looked up in (step, draw, class), and the losses that were asked for."""
    steps, draws, classes = losses.shape
    asked: list[tuple[int, int, int]] = []
    sifting = sift(draws=draws, classes=classes, steps=steps, threshold=threshold, keep=keep)
    answer = None
    while True:
        try:
            step, draw, class_id = sifting.send(answer)
        except StopIteration as stop:
            return stop.value, asked
        asked.extend(zip([step] * len(draw), draw.tolist(), class_id.tolist(), strict=True))
        answer = losses[step, draw, class_id]


def test_classes_leave_when_their_accumulated_gap_exceeds_the_threshold() -> None:
    losses = np.array([[[0.0, 0.6, 1.5, 0.7]], [[0.0, 0.6, 0.0, 0.2]], [[0.0, 0.0, 0.0, 0.0]]])
    alive, asked = run(losses, threshold=1.0, keep=2)
    # Step 0 drops class 2 (1.5), step 1 class 1 (1.2); two are left, so step 2 is not computed.
    assert alive.tolist() == [[True, False, False, True]]
    assert asked == [(0, 0, c) for c in range(4)] + [(1, 0, c) for c in (0, 1, 3)]


def test_a_draw_that_still_has_too_many_keeps_its_best() -> None:
    losses = np.array([[[0.3, 0.1, 0.2, 0.4]]])
    alive, _ = run(losses, threshold=9.0, keep=2)
    assert alive.tolist() == [[False, True, True, False]]


@given(
    losses=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).exponential(size=(5, 6, 12))),
    threshold=st.floats(0.01, 5),
    keep=st.integers(1, 12),
)
def test_each_draw_is_sifted_by_its_own_losses_only(losses: np.ndarray, threshold: float, keep: int) -> None:
    together, _ = run(losses, threshold=threshold, keep=keep)
    for draw in range(losses.shape[1]):
        alone, _ = run(losses[:, draw : draw + 1], threshold=threshold, keep=keep)
        np.testing.assert_array_equal(together[draw], alone[0])
    assert (together.sum(1) <= keep).all()
    assert (together.sum(1) >= 1).all()


def test_the_threshold_means_the_same_on_a_finer_grid() -> None:
    """Weights carry d sigma: halving every step's loss and doubling the steps decides the same."""
    coarse = np.random.default_rng(0).exponential(size=(10, 50, 20)) / 10
    fine = np.repeat(coarse / 2, 2, axis=0)
    rough, _ = run(coarse, threshold=0.3, keep=1)
    smooth, _ = run(fine, threshold=0.3, keep=1)
    assert (rough == smooth).mean() > 0.97


def test_a_thousand_classes_are_sifted_to_ten() -> None:
    losses = np.random.default_rng(0).exponential(size=(48, 3, 1000))
    losses[:, :, 417] /= 10
    alive, _ = run(losses, threshold=3.0, keep=10)
    assert (alive.sum(1) <= 10).all()
    assert alive[:, 417].all()


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="threshold_per_dim"):
        SiftSpec(GridSpec(9, 3), threshold_per_dim=0)
    with pytest.raises(ValueError, match="at least 1 class"):
        SiftSpec(GridSpec(9, 3), threshold_per_dim=1, keep=0)
