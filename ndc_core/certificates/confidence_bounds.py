"""Confidence bounds on a probability from counts."""

from scipy.special import betaincinv

# betaincinv is accurate to about 1e-13 relative (test_confidence_bounds.py measures it against mpmath); the
# bound is lowered by more than that, so that the float is never above the exact value (rule S7).
RELATIVE_MARGIN = 1e-11


def clopper_pearson_lower(successes: int, trials: int, *, alpha: float) -> float:
    """Lower bound on p that holds with probability at least 1 - alpha (one-sided Clopper-Pearson).

    It is the alpha-quantile of Beta(successes, trials - successes + 1), rounded down.

    Raises:
        ValueError: impossible counts, or alpha outside (0, 1).
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials are no counts")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if successes == 0:
        return 0.0
    bound = float(betaincinv(successes, trials - successes + 1, alpha))
    return bound * (1 - RELATIVE_MARGIN)
