import pytest

from pipeline.workers.watchdog import LOADING, MOST_ATTEMPTS, ActorProcess, Heartbeat, UnitGivenUpError, Watchdog

HERE = ActorProcess("node", 7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(clock: Clock) -> Watchdog:
    return Watchdog(clock)


class LocalHeartbeat(Heartbeat):
    """The heartbeat of actor "a", in this process."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog

    def _attempts(self, unit: str) -> int:
        return self.watchdog.begin("a", unit)


def test_an_actor_is_stuck_when_it_is_at_a_unit_and_silent(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.arrive("a", HERE)
    watchdog.end("a", LOADING)
    watchdog.begin("a", "u1")
    watchdog.arrive("b", ActorProcess("node", 8))
    clock.now = 11
    watchdog.begin("b", "u2")
    (stuck,) = watchdog.stuck(10)
    assert (stuck.place, stuck.units, stuck.seconds) == (HERE, ("u1",), 11)
    assert watchdog.stuck(10) == [], "each is reported once"


def test_an_idle_actor_is_not_stuck_however_long(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.arrive("a", HERE)
    watchdog.end("a", LOADING)
    watchdog.begin("a", "u1")
    watchdog.end("a", "u1")
    clock.now = 1e6
    assert watchdog.stuck(10) == []


def test_an_actor_that_never_loads_its_model_is_stuck(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.arrive("a", HERE)
    clock.now = 11
    assert watchdog.stuck(10)[0].units == (LOADING,)


def test_a_restarted_actor_is_at_none_of_its_earlier_units(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.arrive("a", HERE)
    watchdog.begin("a", "u1")
    watchdog.arrive("a", ActorProcess("node", 9))
    watchdog.end("a", LOADING)
    clock.now = 11
    assert watchdog.stuck(10) == []


def test_a_unit_that_brings_its_actor_down_each_time_is_given_up(watchdog: Watchdog) -> None:
    heartbeat = LocalHeartbeat(watchdog)
    watchdog.arrive("a", HERE)
    for _ in range(MOST_ATTEMPTS):
        heartbeat.begin("u1")
        heartbeat.begin("another")
        watchdog.end("a", "another")
        watchdog.arrive("a", HERE)
    with pytest.raises(UnitGivenUpError, match=r"died or was replaced 3 times while at it; see Ray's logs"):
        heartbeat.begin("u1")
