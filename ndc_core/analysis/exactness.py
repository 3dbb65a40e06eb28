"""What a device's self-test measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exactness:
    """How far a row's results move: 0 where they are equal bit for bit, None where it was not tried.

    Each is the largest difference of what votes read of an output (a loss, a score, an entry of the label's gradient)
    as a share of the largest such value. `repeated` is for the same pass once more, `moved` for rows at other places,
    `company` for a pass whose other rows are different ones; the last two are for the label's gradient.
    """

    repeated: float | None = None
    moved: float | None = None
    company: float | None = None
    gradient_repeated: float | None = None
    gradient_moved: float | None = None

    @property
    def exact(self) -> bool:
        """Whether a row's result is known to be a function of the row alone; the gradient counts where it was tried."""
        tried = self.repeated, self.moved, self.company, self.gradient_repeated or 0.0, self.gradient_moved or 0.0
        return all(difference == 0 for difference in tried)

    def merged(self, other: "Exactness") -> "Exactness":
        """The larger difference of each kind."""
        return Exactness(
            _larger(self.repeated, other.repeated),
            _larger(self.moved, other.moved),
            _larger(self.company, other.company),
            _larger(self.gradient_repeated, other.gradient_repeated),
            _larger(self.gradient_moved, other.gradient_moved),
        )


def _larger(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return max(known) if known else None
