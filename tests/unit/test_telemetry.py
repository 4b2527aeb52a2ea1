"""The lines that a group logs, and their fields."""

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Dead, Limits, Topic, event
from eventlane.telemetry import WallClock
from eventlane.testing import ManualClock


@event(topic=Topic("jobs", partitions=1), key="key")
class Job(msgspec.Struct):
    key: str


def shop(clock: ManualClock, **options: Any) -> App:
    app = App("embedded::memory:", clock=clock, limits=Limits(parked_per_key_max=2))

    async def work(job: Job, ctx: Context) -> Dead | None:
        return None if ctx.replayed else Dead("as told")

    app.subscribe(Job, group="work", **options)(work)
    return app


def lines(caplog: pytest.LogCaptureFixture, kind: str) -> list[Any]:
    return [each for each in caplog.records if getattr(each, "kind", None) == kind]


async def until_logged(caplog: pytest.LogCaptureFixture, kind: str, app: App) -> Any:
    async with asyncio.timeout(10):
        while not (found := lines(caplog, kind)):
            await app.status()  # has groups look at once
            await asyncio.to_thread(lambda: None)
    return found[0]


async def test_an_event_that_dies_has_one_line_with_what_leads_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = shop(ManualClock(), on_dead="continue")
    async with app, app.handling():
        await app.publish(Job("k"))
        await app.run_until_idle(timeout_s=10)
        [letter] = await app.dead_letters(group="work")
    [line] = lines(caplog, "event_dead")
    assert line.levelno == logging.ERROR
    assert (line.group, line.topic, line.partition, line.offset) == ("work", "jobs", 0, 0)
    assert (line.key, line.error_class, line.attempts) == ("k", letter.error_class, 1)
    assert (line.fingerprint, line.dead_letter) == (letter.fingerprint, str(letter.id))
    assert line.handler == letter.handler
    assert "group work: jobs[0] offset 0, key 'k', is dead after attempt 1" in line.getMessage()
    assert "as told" not in line.getMessage()


async def test_of_many_that_die_at_once_five_have_a_line_and_the_others_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    app = shop(clock, on_dead="continue")
    async with app, app.handling():
        await app.publish_many(Job(str(number)) for number in range(12))
        await app.run_until_idle(timeout_s=10)
        assert not lines(caplog, "events_dead")
    assert len(lines(caplog, "event_dead")) == 5
    [rest] = lines(caplog, "events_dead")
    assert (rest.group, rest.count) == ("work", 7)


async def test_a_partition_that_is_stopped_and_goes_on_says_so_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = shop(ManualClock(), on_dead="stop")
    async with app, app.handling():
        await app.publish(Job("k"))
        stopped = await until_logged(caplog, "partition_stopped", app)
        await until_logged(caplog, "event_dead", app)
        assert (stopped.group, stopped.topic, stopped.partition) == ("work", "jobs", 0)
        assert "replay or archive it" in stopped.reason
        [letter] = await app.dead_letters(group="work")
        await app.archive([letter.id], reason="for the test")
        await until_logged(caplog, "partition_goes_on", app)
    assert [len(lines(caplog, f"partition_{what}")) for what in ("stopped", "goes_on")] == [1, 1]


async def test_a_partition_that_is_full_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app = shop(ManualClock(), on_dead="park")
    async with app, app.handling():
        await app.publish_many([Job("k")] * 5)
        full = await until_logged(caplog, "partition_full", app)
    assert "Limits.parked_per_key_max" in full.reason


async def test_a_group_that_is_paused_and_resumed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app = shop(ManualClock())
    async with app, app.handling():
        await app.pause("work", reason="for a while")
        assert (await until_logged(caplog, "group_paused", app)).reason == "for a while"
        await app.resume("work")
        assert (await until_logged(caplog, "group_resumed", app)).group == "work"


class Settable(ManualClock):
    """A clock whose wall time can be set."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@pytest.mark.parametrize(
    ("jump_ms", "words"),
    [
        (3_600_000, "set forward by 3600.0 s, or this machine slept: retries become due earlier"),
        (-3_600_000, "set back by 3600.0 s: retries become due later by as much"),
    ],
)
def test_a_wall_clock_that_is_set_is_noticed_once(
    jump_ms: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Settable()
    wall = WallClock(clock)
    clock.advance(1000)
    wall.look()
    clock.ahead_ms = jump_ms
    wall.look()
    wall.look()
    [line] = caplog.records
    assert words in line.getMessage()
    assert vars(line)["jump_s"] == pytest.approx(jump_ms / 1000)


def test_a_wall_clock_that_is_corrected_by_little_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Settable()
    look: Callable[[], None] = WallClock(clock).look
    for _ in range(5):
        clock.ahead_ms += 900
        look()
    assert not caplog.records


def test_the_page_on_logging_has_every_kind_of_line_and_no_other() -> None:
    root = Path(__file__).parents[2]
    sources = "".join(each.read_text("utf-8") for each in root.glob("src/eventlane/**/*.py"))
    logged = set(re.findall(r'"kind": "(\w+)"|_fields\(\s*"(\w+)"', sources))
    in_code = {a or b for a, b in logged} | {"partition_stopped", "partition_full"}
    page = (root / "docs/howto/logging.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| [A-Z]+ \|", page, re.MULTILINE)) == in_code
