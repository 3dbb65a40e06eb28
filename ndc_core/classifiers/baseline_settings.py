"""What is declared about a baseline (see `baselines`)."""

BASELINES = ("plain", "denoise")


def refuse_steps(steps: int, paths: int) -> None:
    """Raises ValueError for numbers of steps and paths that are impossible or make no sense."""
    if steps < 1 or paths < 1:
        raise ValueError(f"steps and paths must be at least 1, not {steps} and {paths}")
    if steps == 1 and paths > 1:
        raise ValueError(f"{paths} paths of 1 step are all the same: set steps above 1, or paths to 1")
