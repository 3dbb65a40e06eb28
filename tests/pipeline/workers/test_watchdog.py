import pytest

from pipeline.workers.watchdog import LOADING, MOST_ATTEMPTS, Journal, Ledger, Place, UnitGivenUpError

HERE = Place("node", 7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


class InLedger(Journal):
    """The journal of actor "a", in this process."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def _attempts(self, unit: str) -> int:
        return self.ledger.begin("a", unit)


def test_an_actor_is_stuck_when_it_is_at_a_unit_and_not_heard_of(ledger: Ledger, clock: Clock) -> None:
    ledger.arrive("a", HERE)
    ledger.end("a", LOADING)
    ledger.begin("a", "u1")
    ledger.arrive("b", Place("node", 8))
    clock.now = 11
    ledger.begin("b", "u2")
    (stuck,) = ledger.stuck(10)
    assert (stuck.place, stuck.units, stuck.seconds) == (HERE, ("u1",), 11)
    assert ledger.stuck(10) == [], "each is told of once"


def test_an_idle_actor_is_not_stuck_however_long(ledger: Ledger, clock: Clock) -> None:
    ledger.arrive("a", HERE)
    ledger.end("a", LOADING)
    ledger.begin("a", "u1")
    ledger.end("a", "u1")
    clock.now = 1e6
    assert ledger.stuck(10) == []


def test_an_actor_that_never_loads_its_model_is_stuck(ledger: Ledger, clock: Clock) -> None:
    ledger.arrive("a", HERE)
    clock.now = 11
    assert ledger.stuck(10)[0].units == (LOADING,)


def test_a_restarted_actor_is_at_nothing_of_before(ledger: Ledger, clock: Clock) -> None:
    ledger.arrive("a", HERE)
    ledger.begin("a", "u1")
    ledger.arrive("a", Place("node", 9))
    ledger.end("a", LOADING)
    clock.now = 11
    assert ledger.stuck(10) == []


def test_a_unit_that_brings_its_actor_down_each_time_is_given_up(ledger: Ledger) -> None:
    journal = InLedger(ledger)
    ledger.arrive("a", HERE)
    for _ in range(MOST_ATTEMPTS):
        journal.begin("u1")
        journal.begin("another")
        ledger.end("a", "another")
        ledger.arrive("a", HERE)
    with pytest.raises(UnitGivenUpError, match=r"died or was replaced 3 times while at it; see Ray's logs"):
        journal.begin("u1")
