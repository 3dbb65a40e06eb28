import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from ndc_core.certificates.confidence_bounds import clopper_pearson_lower


def independent_bound(successes: np.ndarray, trials: np.ndarray, alpha: float) -> np.ndarray:
    # statsmodels' interval is two-sided: its lower end at 2 alpha is the one-sided bound at alpha.
    return np.asarray(proportion_confint(successes, trials, alpha=2 * alpha, method="beta")[0])


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_bound_equals_statsmodels_for_all_counts_up_to_200(alpha: float) -> None:
    counts = [(k, n) for n in range(1, 201) for k in range(n + 1)]
    ours = [clopper_pearson_lower(k, n, alpha=alpha) for k, n in counts]
    theirs = independent_bound(*np.array(counts).T, alpha)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-15)


def test_bound_equals_statsmodels_for_random_counts_up_to_100000() -> None:
    generator = np.random.default_rng(0)
    trials = generator.integers(1, 100_001, 3000)
    successes = np.minimum(trials, generator.integers(0, trials + 1) + generator.integers(0, 2, 3000) * trials)
    ours = [clopper_pearson_lower(int(k), int(n), alpha=0.001) for k, n in zip(successes, trials, strict=True)]
    np.testing.assert_allclose(ours, independent_bound(successes, trials, 0.001), rtol=1e-9, atol=1e-15)


def exact_tail(successes: int, trials: int, p: float) -> mpmath.mpf:
    """P[Binomial(trials, p) >= successes] with fifty digits; terms fall quickly where p < successes / trials."""
    with mpmath.workdps(50):
        q = mpmath.mpf(p)
        term = mpmath.binomial(trials, successes) * q**successes * (1 - q) ** (trials - successes)
        total = term
        for k in range(successes, trials):
            term *= (trials - k) * q / ((k + 1) * (1 - q))
            total += term
            if term < total * mpmath.mpf("1e-40"):
                break
        return total


@given(
    trials=st.integers(1, 20_000),
    share=st.floats(0, 1),
    alpha=st.sampled_from([1e-6, 0.001, 0.01, 0.05, 0.3]),
)
def test_bound_is_never_above_the_exact_one(trials: int, share: float, alpha: float) -> None:
    successes = max(1, round(share * trials))
    bound = clopper_pearson_lower(successes, trials, alpha=alpha)
    # At the exact bound the tail is alpha; it grows with p, so a bound that is too high has a larger tail.
    tail = exact_tail(successes, trials, bound)
    assert tail <= alpha
    assert tail >= alpha * (1 - 1e-5), "rounded down by far more than its error"


def test_no_success_proves_nothing() -> None:
    assert clopper_pearson_lower(0, 100, alpha=0.001) == 0


@pytest.mark.parametrize(
    ("successes", "trials", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 2, 0), (1, 2, 1)]
)
def test_impossible_arguments_are_refused(successes: int, trials: int, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"no counts|alpha"):
        clopper_pearson_lower(successes, trials, alpha=alpha)
