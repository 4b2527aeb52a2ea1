"""A replay that dies again returns the later ones of its lane, also those that come afterwards."""

from typing import Any

from eventlane.config import Limits
from eventlane.handler import Origin
from eventlane.lanes import Lanes
from eventlane.settlement import Acquired, Command, Settlement
from eventlane.testing.stage import GROUP, TOPIC, letter, record

OPERATION = 7


def lanes_of_a_partition() -> Lanes:
    acquired = Acquired(TOPIC, 0, 1, 3, (), (), (), ())
    origin = Origin(TOPIC, 0, GROUP, None, lambda *_: None)  # type: ignore[arg-type]  # publishes nothing
    return Lanes(origin, acquired, ordering="key", limits=Limits(), now_ms=0)


def command(offset: int, **given: Any) -> Command:
    of_it: Any = Acquired(TOPIC, 0, 1, 3, (), (), (), ())
    dead = letter(of_it, offset, record("a", "{}"), on_dead="continue")
    return Command(
        **{"id": offset + 1, "kind": "replay", "operation": OPERATION, **given}, letter=dead
    )


def dies(lanes: Lanes) -> None:
    run = lanes.take()
    assert run is not None
    assert run.trouble is not None
    assert run.trouble.letter is not None
    lanes.dead(run, run.trouble.letter)


def written(lanes: Lanes) -> Settlement:
    settlement = lanes.collect()
    assert settlement is not None
    lanes.committed()
    return settlement


def test_a_replay_that_was_released_before_an_earlier_one_died_is_returned() -> None:
    lanes = lanes_of_a_partition()
    lanes.command(command(0))
    dies(lanes)
    lanes.command(command(1))
    settlement = written(lanes)
    assert [(each.offset, each.outcome) for each in settlement.letters] == [
        (0, "dead"),
        (1, "returned"),
    ]
    assert list(settlement.commands) == [1, 2]
    assert lanes.take() is None


def test_a_replay_that_the_broker_knows_to_be_behind_is_returned() -> None:
    lanes = lanes_of_a_partition()
    lanes.command(command(1, behind=True))
    assert lanes.take() is None
    assert [(each.offset, each.outcome) for each in written(lanes).letters] == [(1, "returned")]


def test_a_replay_of_another_operation_runs_though_an_earlier_one_died() -> None:
    lanes = lanes_of_a_partition()
    lanes.command(command(0))
    dies(lanes)
    lanes.command(command(1, operation=OPERATION + 1))
    written(lanes)
    run = lanes.take()
    assert run is not None
    assert run.offset == 1
