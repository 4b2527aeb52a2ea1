"""Metrics: the text, the sum over processes, and what a scrape of a running app has."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Dead, Retry, StorageError, Topic, event
from eventlane.health import HealthServer
from eventlane.lanes import Lanes
from eventlane.metrics import BOUNDS_S, CONTENT_TYPE, FAMILIES, Histogram, Series, added, text
from eventlane.scraping import page_of
from eventlane.suspects import Suspects
from eventlane.testing import ManualClock
from eventlane.vitals import Vitals
from tests.unit.test_health import ANYWHERE, ask

LINE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (-?[\d.e+-]+)')
"""A sample, by the description of the format."""


def samples(page: str) -> dict[str, float]:
    """By name and labels; refuses what is not of the format."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith("# "):
            match = LINE.fullmatch(line)
            assert match is not None, line
            found[line.rpartition(" ")[0]] = float(match[3])
    return found


def test_labels_are_escaped_and_whole_numbers_have_no_point() -> None:
    series = [Series("eventlane_group_paused", ('a"b\\c\nd',), (1.0,))]
    assert text(series) == (
        "# HELP eventlane_group_paused 1 while it is paused.\n"
        "# TYPE eventlane_group_paused gauge\n"
        'eventlane_group_paused{group="a\\"b\\\\c\\nd"} 1\n'
    )


def test_buckets_count_what_is_not_longer_than_their_bound_and_all_before_them() -> None:
    durations = Histogram()
    for duration_s in (0.000_05, 0.001, 0.002, 1000.0):
        durations.observe(duration_s)
    found = samples(text([Series("eventlane_settle_seconds", ("mail",), durations.values)]))
    bucket = 'eventlane_settle_seconds_bucket{group="mail",le="%s"}'
    counts = [found[bucket % le] for le in ("0.0001", "0.0005", "0.001", "0.0025", "60", "+Inf")]
    assert counts == [1, 1, 2, 3, 3, 4]
    assert len(found) == len(BOUNDS_S) + 3
    assert found['eventlane_settle_seconds_count{group="mail"}'] == 4
    assert found['eventlane_settle_seconds_sum{group="mail"}'] == pytest.approx(1000.00305)


def test_what_processes_say_is_added_up_by_its_labels() -> None:
    def of(group: str, *values: float) -> Series:
        return Series("eventlane_settle_seconds", (group,), values)

    parts = [[of("a", 1, 2), of("b", 5, 5)], [of("a", 10, 20)], []]
    assert added(parts) == [of("a", 11, 22), of("b", 5, 5)]


def test_an_event_that_was_suspected_is_counted_once_when_it_has_an_outcome() -> None:
    suspects = Suspects([(3, 6, 1)], watermark=3)
    suspects.clear(4)
    suspects.clear(4)
    assert suspects.count_ended() == 1
    suspects.left(watermark=10)
    assert [suspects.count_ended(), suspects.count_ended()] == [2, 0]


# --- of a running app -------------------------------------------------------------------------


@event(topic=Topic("jobs", partitions=1), key="key")
class Job(msgspec.Struct):
    key: str
    fate: str = "done"


def shop(clock: ManualClock) -> App:
    app = App("embedded::memory:", clock=clock)

    @app.subscribe(Job, group="work", retry=Retry(attempts=2))
    async def work(job: Job, ctx: Context) -> Dead | None:
        if job.fate == "raise":
            raise ValueError(job.key)
        return Dead("as told") if job.fate == "dead" else None

    return app


async def scrape(vitals: Vitals) -> dict[str, float]:
    with HealthServer(ANYWHERE, vitals.pages()) as server:
        status, kind, body = await asyncio.to_thread(ask, server.address, "/metrics")
    assert (status, kind) == (200, CONTENT_TYPE)
    return samples(body.decode())


def of_group(found: dict[str, float], name: str, *labels: str) -> Iterable[float]:
    for each, value in found.items():
        if each.startswith(f"eventlane_{name}{{") and all(label in each for label in labels):
            yield value


async def test_a_scrape_has_attempts_failures_durations_and_the_account() -> None:
    clock = ManualClock()
    app = shop(clock)
    async with app, app.handling():
        vitals = Vitals(app._limits)
        vitals.handles(app._dispatchers, app._connected, clock)
        await app.publish_many([Job("a"), Job("b", "raise"), Job("b"), Job("c", "dead")])
        await app.run_until_idle(timeout_s=10)
        found = await scrape(vitals)
    attempts = {
        outcome: list(of_group(found, "attempts_total", f'outcome="{outcome}"'))
        for outcome in ("done", "skipped", "retry", "dead")
    }
    assert attempts == {"done": [1], "skipped": [0], "retry": [1], "dead": [2]}
    assert list(of_group(found, "failures_total", 'kind="error"', "work")) == [2]
    assert list(of_group(found, "failures_total", 'kind="returned"')) == [1]
    assert list(of_group(found, "parked_total")) == [1]
    assert list(of_group(found, "group_events", 'state="dead"')) == [2]
    assert list(of_group(found, "group_events", 'state="parked"')) == [1]
    assert list(of_group(found, "group_members")) == [1]
    assert sum(of_group(found, "handler_seconds_count")) >= 1
    assert sum(of_group(found, "settle_seconds_count")) >= 1
    assert sum(of_group(found, "storage_seconds_count", 'step="commit"')) >= 1
    assert found['eventlane_topic_events_total{topic="jobs"}'] == 4


async def test_lag_is_told_in_events_and_in_seconds() -> None:
    clock = ManualClock()
    app = shop(clock)
    async with app, app.handling():
        await app.pause("work", reason="for a while")
        vitals = Vitals(app._limits)
        vitals.handles([], app._connected, clock)
        await app.publish(Job("a"))
        clock.advance(90)
        await app.publish(Job("b"))
        clock.advance(30)
        found = await scrape(vitals)
    place = '{group="work",topic="jobs",partition="0"}'
    assert found[f"eventlane_lag_events{place}"] == 2
    assert found[f"eventlane_lag_seconds{place}"] == 120
    assert found['eventlane_group_paused{group="work"}'] == 1


class Unreadable:
    times: dict[str, Histogram] = {}  # noqa: RUF012  # as its Protocol has it

    async def status(self) -> None:
        raise StorageError("the disk is gone")


async def test_a_broker_that_cannot_be_read_leaves_what_was_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = shop(ManualClock())
    async with app, app.handling():
        await app.publish(Job("a"))
        await app.run_until_idle(timeout_s=10)
        vitals = Vitals(app._limits)
        broker: Any = Unreadable()
        vitals.handles(app._dispatchers, broker, ManualClock())
        found = await scrape(vitals)
    assert list(of_group(found, "attempts_total", "done")) == [1]
    assert not list(of_group(found, "group_events"))
    assert "/metrics lacks what the broker has: the disk is gone" in caplog.text


async def test_handlers_that_take_long_are_measured_each_time_they_run() -> None:
    app = App("embedded::memory:")
    may_end = asyncio.Event()

    @app.subscribe(Job, group="work", concurrency=1)
    async def work(job: Job, ctx: Context) -> None:
        await may_end.wait()

    async with app, app.handling():
        await app.publish(Job("a"))
        [dispatcher] = app._dispatchers
        lanes: Lanes | None = None
        async with asyncio.timeout(10):
            while lanes is None or not lanes.closed:
                await asyncio.to_thread(lambda: None)
                lanes = next(iter(dispatcher.partitions.values()), None)
        asyncio.get_running_loop().call_later(0.06, may_end.set)
        await app.run_until_idle(timeout_s=10)
        found = samples(text(dispatcher.telemetry.series()))
    [count] = of_group(found, "handler_seconds_count")
    [sum_s] = of_group(found, "handler_seconds_sum")
    assert count == 1
    assert 0.05 < sum_s < 10


@pytest.mark.parametrize("was_open", [True, False])
def test_a_scrape_without_a_running_event_loop_has_what_can_be_said(*, was_open: bool) -> None:
    counted = Series("eventlane_parked_total", ("work",), (3,))

    async def gather() -> list[Series]:
        raise AssertionError("nothing runs it")

    loop = asyncio.new_event_loop() if was_open else None
    if loop is not None:
        loop.close()
    found = page_of(gather, lambda: loop, lambda: [counted])()
    assert samples(found.body.decode()) == {'eventlane_parked_total{group="work"}': 3}


def test_the_page_names_every_metric_with_its_labels_and_no_other() -> None:
    page = Path(__file__).parents[2].joinpath("docs/reference/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(eventlane_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    said = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert said == {name: (each.kind, each.labels) for name, each in FAMILIES.items()}
