"""What a partition had in memory is given back when it is lost, and when handling ends."""

import asyncio
import gc

import msgspec

from eventlane import App, Context, event
from eventlane.config import Limits
from eventlane.handler import Origin
from eventlane.lanes import Lanes
from eventlane.settlement import Acquired, Batch
from eventlane.testing.stage import TOPIC, record


@event(topic="forgotten", key="key", name="forgotten")
class Step(msgspec.Struct, frozen=True):
    key: str


def lanes_of(group: str) -> int:
    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, Lanes)]
    return sum(each.origin.group == group for each in found)


def test_lanes_that_are_forgotten_leave_nothing_in_memory() -> None:
    acquired = Acquired(TOPIC, 0, 1, 0, (), (), (), ())
    origin = Origin(TOPIC, 0, "lost", None, lambda *_: None)  # type: ignore[arg-type]  # publishes nothing
    lanes = origin.lanes = Lanes(origin, acquired, ordering="key", limits=Limits(), now_ms=0)
    lanes.add(Batch(range(4), [record(key, "") for key in "aaab"]))
    runs = [lanes.take(), lanes.take()]
    assert None not in runs
    assert lanes.take() is None
    lanes.forget()
    assert lanes.take() is None
    assert lanes_of("lost") == 1
    del lanes, origin, runs
    assert lanes_of("lost") == 0


async def test_handling_that_has_ended_leaves_nothing_in_memory() -> None:
    app, handled = App("embedded::memory:"), asyncio.Event()

    @app.subscribe(Step, group="ended")
    async def handle(_: Step, __: Context) -> None:
        handled.set()

    async with app:
        async with app.handling():
            await app.publish_many([Step("a"), Step("a"), Step("b")])
            await handled.wait()
            assert lanes_of("ended") > 0
        assert lanes_of("ended") == 0
