"""A pause that a handler asked for, and that was lost with its partition, holds up nothing."""

from pathlib import Path

from eventlane.brokers import connect
from eventlane.config import Limits
from eventlane.settlement import Lost, Paused
from eventlane.testing.stage import GROUP, TOPIC, acquired, changes_until, spec
from eventlane.topic import Topic

QUICK = Limits(lease_s=0.4, stall_s_max=0.2)


async def test_who_loses_a_partition_is_told_whether_the_group_is_paused(tmp_path: Path) -> None:
    one = await connect(f"embedded:{tmp_path}", limits=QUICK)
    two = await connect(f"embedded:{tmp_path}", limits=QUICK)
    await one.ensure_topic(Topic(TOPIC, partitions=1))
    frozen = await one.join(spec())
    await acquired(frozen)
    waiting = await two.join(spec())
    await acquired(waiting)
    found = await changes_until(frozen, lambda found: Lost(TOPIC, 0) in found)
    assert found[found.index(Lost(TOPIC, 0)) + 1] == Paused(None)
    await two.pause(GROUP, actor="me", reason="stock count")
    await waiting.leave()
    again = await changes_until(frozen, lambda found: any(isinstance(x, Paused) for x in found))
    assert Paused("stock count") in again
    await one.aclose()
    await two.aclose()
