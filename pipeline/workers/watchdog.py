"""Which actor is at which unit, and since when: to find actors that hang, and units that kill their actors."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

MOST_ATTEMPTS = 3
LOADING = "the loading of the model"


class UnitGivenUpError(RuntimeError):
    """A unit whose actor died or was replaced each time that it was tried."""


class Heartbeat:
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
class ActorProcess:
    """A process of a cluster."""

    node: str
    process: int


@dataclass(frozen=True)
class Stuck:
    """An actor that was not heard of for `seconds` while at these units."""

    place: ActorProcess
    units: tuple[str, ...]
    seconds: float


@dataclass
class _Entry:
    place: ActorProcess
    heard: float
    units: list[str]


class Watchdog:
    """The journals of all actors of one driver. Not durable: a driver that starts again begins to count again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.entries: dict[str, _Entry] = {}  # by actor, which stays the same when it is restarted
        self.attempts: defaultdict[str, int] = defaultdict(int)

    def arrive(self, actor: str, place: ActorProcess) -> None:
        self.entries[actor] = _Entry(place, self.clock(), [LOADING])

    def begin(self, actor: str, unit: str) -> int:
        """How often the unit was begun and not ended, this time included."""
        self.entries[actor].heard = self.clock()
        self.entries[actor].units.append(unit)
        self.attempts[unit] += 1
        return self.attempts[unit]

    def end(self, actor: str, unit: str) -> None:
        self.entries[actor].heard = self.clock()
        if unit in self.entries[actor].units:
            self.entries[actor].units.remove(unit)
        self.attempts.pop(unit, None)

    def stuck(self, seconds: float) -> list[Stuck]:
        """Actors that are at something and were not heard of for longer than `seconds`. Each is reported once."""
        silent_actors = []
        for entry in self.entries.values():
            silent = self.clock() - entry.heard
            if entry.units and silent > seconds:
                silent_actors.append(Stuck(entry.place, tuple(entry.units), silent))
                entry.units.clear()
        return silent_actors
