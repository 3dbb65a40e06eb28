"""Which actor is at which unit, and since when: to find actors that hang, and units that bring theirs down."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MOST_ATTEMPTS = 3
LOADING = "the loading of the model"


class UnitGivenUpError(RuntimeError):
    """A unit whose actor died or was replaced each time that it was tried."""


class Journal:
    """What an actor tells of itself. This one keeps nothing, for an actor that works in the driver's own process."""

    def arrive(self) -> None:
        """Takes note that the actor is new, or that it was restarted: what it was at is lost."""

    def begin(self, unit: str) -> None:
        """Takes note that a unit is begun; `end` is to follow, also if this raises.

        Raises:
            UnitGivenUpError: its actor was lost too often while at it.
        """
        if self._attempts(unit) > MOST_ATTEMPTS:
            raise UnitGivenUpError(f"its actor died or was replaced {MOST_ATTEMPTS} times while at it; see Ray's logs")

    def _attempts(self, unit: str) -> int:
        return 1

    def end(self, unit: str) -> None:
        """Takes note that a unit is done or has failed."""


@dataclass(frozen=True)
class Stuck:
    """An actor that was not heard of for so long, while at these units."""

    actor: Hashable
    units: tuple[str, ...]
    seconds: float


class Ledger:
    """The journals of all actors of one driver. Not durable: a driver that starts again begins to count again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.heard: dict[Hashable, float] = {}
        self.at: defaultdict[Hashable, list[str]] = defaultdict(list)
        self.attempts: defaultdict[str, int] = defaultdict(int)

    def arrive(self, actor: Hashable) -> None:
        self.heard[actor] = self.clock()
        self.at[actor] = [LOADING]

    def begin(self, actor: Hashable, unit: str) -> int:
        """How often the unit was begun and not ended, this time included."""
        self.heard[actor] = self.clock()
        self.at[actor].append(unit)
        self.attempts[unit] += 1
        return self.attempts[unit]

    def end(self, actor: Hashable, unit: str) -> None:
        self.heard[actor] = self.clock()
        if unit in self.at[actor]:
            self.at[actor].remove(unit)
        self.attempts.pop(unit, None)

    def stuck(self, seconds: float) -> list[Stuck]:
        """Actors that are at something and were not heard of for longer than `seconds`. Each is told of once."""
        now = self.clock()
        found = [
            Stuck(actor, tuple(self.at[actor]), now - heard)
            for actor, heard in self.heard.items()
            if self.at[actor] and now - heard > seconds
        ]
        for one in found:
            self.at[one.actor] = []
        return found
