"""A group that does not keep up costs disk, and neither memory nor the publisher."""

import asyncio
import tracemalloc
from pathlib import Path

import msgspec

from eventlane import App, Limits, event

EVENT_BYTES = 1_000
COUNT = 20_000
SPAN_MAX = 500


@event(topic="jobs", key="key")
class Job(msgspec.Struct):
    key: str
    text: str


async def test_a_group_that_stands_still_holds_no_more_than_its_span(tmp_path: Path) -> None:
    limits = Limits(span_max=SPAN_MAX, fetch_events_max=SPAN_MAX, batch_events_max=SPAN_MAX)
    app = App(f"embedded:{tmp_path}", limits=limits)
    goes_on = asyncio.Event()
    done = 0

    @app.subscribe(Job, group="slow", concurrency=10)
    async def handle(job: Job, _ctx: object) -> None:
        nonlocal done
        await goes_on.wait()
        done += 1

    async with app, app.handling():
        await app.publish(Job("0", "x"))
        tracemalloc.start()
        try:
            # Not made in advance, so that what is held is held by the app.
            published = await app.publish_many(
                Job(str(number), "x" * EVENT_BYTES) for number in range(COUNT)
            )
            held_bytes, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        status = (await app.status()).groups["slow"]
        assert (published, status.done, status.open) == (COUNT, 0, COUNT + 1)
        goes_on.set()
        await app.run_until_idle(timeout_s=60)
    assert done == COUNT + 1
    # All of it would be more than 20 MB; of the 500 events of a span there are several copies.
    assert held_bytes < 3_000_000
    assert peak_bytes < 8_000_000
