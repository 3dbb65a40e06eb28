import numpy as np
import pytest

from ndc_core.noise.grid import WEIGHTS, GridSpec, build_grid, edm_weight, elbo_weight, paper_weight, tau_correction


def test_paper_grid_has_124_terms_from_126_points() -> None:
    grid = build_grid(GridSpec(points=126, sigma_model_max=3), tau_model=0.5)
    assert len(grid.level) == 124
    assert grid.level[-1] == 3
    np.testing.assert_allclose(grid.level - grid.previous, 2.5 / 125)
    assert grid.previous[0] == pytest.approx(0.52)


def test_log_grid_rises_by_a_constant_factor() -> None:
    grid = build_grid(GridSpec(points=9, sigma_model_max=2, spacing="log"), tau_model=0.5)
    np.testing.assert_allclose(grid.level / grid.previous, 4 ** (1 / 8))


def test_elbo_weight_with_its_correction_is_the_exact_kl_weight() -> None:
    grid = build_grid(GridSpec(points=20, sigma_model_max=3), tau_model=0.5)
    s_a2, s_b2 = grid.previous**2 - 0.25, grid.level**2 - 0.25
    # Weight of the means' distance, w = s_b^2 / (2 s_a^2 (b^2 - a^2)), times (b^2 - a^2)^2 / b^4 on h.
    difference = grid.level**2 - grid.previous**2
    exact = s_b2 / (2 * s_a2 * difference) * difference**2 / grid.level**4
    np.testing.assert_allclose(elbo_weight(grid) * tau_correction(grid), exact)


def test_elbo_weight_tends_to_its_continuous_limit() -> None:
    grid = build_grid(GridSpec(points=20_001, sigma_model_max=3), tau_model=0.5)
    limit = (grid.level**2 - grid.previous**2) / (2 * grid.level**4)
    assert elbo_weight(grid).sum() == pytest.approx(limit.sum(), rel=1e-3)


def test_paper_weight_differs_from_edm_by_the_misplaced_bracket() -> None:
    grid = build_grid(GridSpec(points=50, sigma_model_max=3), tau_model=0.5)
    exponent = (np.log(grid.level) + 1.2) ** 2 / 2
    np.testing.assert_allclose(paper_weight(grid) / edm_weight(grid), np.exp(exponent / 1.44 - exponent * 1.44))


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_do_not_depend_on_how_fine_the_grid_is(name: str) -> None:
    sums = [
        WEIGHTS[name](build_grid(GridSpec(points=points, sigma_model_max=3), tau_model=0.5)).sum()
        for points in (2001, 4001)
    ]
    assert sums[0] == pytest.approx(sums[1], rel=5e-3)


def test_grids_that_cannot_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        GridSpec(points=2, sigma_model_max=3)
    with pytest.raises(ValueError, match="must rise"):
        GridSpec(points=9, sigma_model_max=1, sigma_model_min=2)
    with pytest.raises(ValueError, match="raise sigma_model_max"):
        build_grid(GridSpec(points=9, sigma_model_max=1), tau_model=1.0)
    with pytest.raises(ValueError, match="cannot start at 0"):
        build_grid(GridSpec(points=9, sigma_model_max=1, spacing="log"), tau_model=0.0)


def test_explicit_levels_above_tau_count() -> None:
    spec = GridSpec(levels=(0.3, 0.4, 0.55, 0.8, 1.2))
    assert build_grid(spec, tau_model=0.25).level.tolist() == [0.4, 0.55, 0.8, 1.2]
    above = build_grid(spec, tau_model=0.4)
    assert (above.previous.tolist(), above.level.tolist()) == ([0.55, 0.8], [0.8, 1.2])
    assert spec.steps == 4


def test_levels_that_cannot_be_a_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="not by both"):
        GridSpec(points=9, sigma_model_max=1, levels=(0.5, 1.0))
    with pytest.raises(ValueError, match="must be positive and rise"):
        GridSpec(levels=(0.5, 0.5))
    with pytest.raises(ValueError, match="fewer than two"):
        build_grid(GridSpec(levels=(0.5, 1.0)), tau_model=0.6)
