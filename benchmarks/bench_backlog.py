"""A long backlog must not cost: publishing onto it, consuming from it, and opening it.

What is compared is the cost of an event in a file with ten million events that nobody has handled,
and in one with ten thousand. Consuming means a group that has all of them before it, or, in the
middle, half of them before and half of them behind it.

A round on the small file is over within milliseconds, so what it costs to start handling at all
would count there and not in the large one. It is measured by itself, on a file with a single event
for each partition or so, and taken off both.
"""

import statistics
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

from benchmarks.bench_consume import Seen
from benchmarks.measuring import Benchmark, Result, Settings, compared, in_turns, now_s, plain
from benchmarks.orders import Order, orders
from eventlane import App, Context

__all__ = ["BENCHMARKS"]

LONG = 10_000_000
SHORT = 10_000
PUBLISHED = 200_000
HANDLED = 200_000
ROUNDS = 20
"""On the small file, for one on the large one."""
TARGET = "<= 1.1"
ROWS = ("backlog_publish", "backlog_consume_first", "backlog_consume_middle", "backlog_open")


async def fill(directory: Path, events: int) -> None:
    some = orders(min(events, 100_000))
    async with App(f"embedded:{directory}") as app:
        await app.publish_many(islice(cycle(some), events))


async def until_handled(directory: Path, group: str, events: int) -> float:
    """Seconds from the start of handling until so many events of a group were handled."""
    seen = Seen(events)
    app = App(f"embedded:{directory}")
    app.subscribe(Order, group=group)(seen.handle)
    async with app:
        start_s = now_s()
        async with app.handling():
            await seen.all.wait()
    return seen.last_s - start_s


async def place_groups(directory: Path, groups: list[str]) -> None:
    """Have groups begin where the log ends now."""

    async def never(_event: Order, _ctx: Context) -> None:
        raise AssertionError("expected nothing to handle yet")

    app = App(f"embedded:{directory}")
    for group in groups:
        app.subscribe(Order, group=group, start="now")(never)
    async with app, app.handling():
        pass


class Files:
    """The three files, and groups that nobody has used yet."""

    def __init__(self, directory: Path, repeats: int) -> None:
        self.long = directory / "backlog-long"
        self.short = directory / "backlog-short"
        self.nearly_empty = directory / "backlog-nearly-empty"
        self.fresh = (directory / f"backlog-{number}" for number in count())
        self.groups = map("group-{}".format, count())
        self.middle = [f"middle-{number}" for number in range(repeats + 1)]
        self.build_s = 0.0

    async def build(self, settings: Settings) -> None:
        start_s = now_s()
        half = settings.events(LONG) // 2
        await fill(self.long, half)
        await place_groups(self.long, self.middle)
        await fill(self.long, half)
        self.build_s = now_s() - start_s
        await fill(self.short, settings.events(SHORT))
        await fill(self.nearly_empty, 16)

    @property
    def note(self) -> str:
        size_bytes = sum(each.stat().st_size for each in self.long.iterdir() if each.is_file())
        return f"The long file: {size_bytes / 1e9:.2f} GB, built in {self.build_s:.0f} s."


async def publish_onto(files: Files, settings: Settings) -> Result:
    events = orders(settings.events(PUBLISHED))

    async def onto(directory: Path) -> float:
        async with App(f"embedded:{directory}") as app:
            await app.publish_many(events[:8])
            start_s = now_s()
            await app.publish_many(events)
            return now_s() - start_s

    async def long() -> float:
        return await onto(files.long)

    async def short() -> float:
        directory = next(files.fresh)
        await fill(directory, settings.events(SHORT))
        return await onto(directory)

    return compared(
        "backlog_publish",
        await in_turns(long, short, settings.repeats),
        len(events),
        unit="us/event",
        baseline="onto 10,000 events",
        target=TARGET,
        note=files.note,
    )


async def consume(name: str, groups: Iterator[str], files: Files, settings: Settings) -> Result:
    handled = settings.events(HANDLED)
    short_events = settings.events(SHORT)
    rounds = max(2, int(ROUNDS * min(1.0, settings.scale)))

    async def start() -> float:
        """What it takes to start, which is not the events' cost."""
        return await until_handled(files.nearly_empty, next(files.groups), 16)

    async def long() -> float:
        start_s = statistics.median([await start() for _ in range(rounds)])
        return await until_handled(files.long, next(groups), handled) - start_s

    async def short() -> float:
        rounds_s = [
            await until_handled(files.short, next(files.groups), short_events) - await start()
            for _ in range(rounds)
        ]
        return statistics.median(rounds_s) * handled / short_events

    return compared(
        name,
        await in_turns(long, short, settings.repeats),
        handled,
        unit="us/event",
        baseline="of 10,000 events",
        target=TARGET,
    )


async def open_and_handle(files: Files, settings: Settings) -> Result:
    async def first_event(directory: Path) -> float:
        seen = Seen(1)
        app = App(f"embedded:{directory}")
        app.subscribe(Order, group=next(files.groups))(seen.handle)
        start_s = now_s()
        async with app, app.handling():
            await seen.all.wait()
        return seen.last_s - start_s

    turns = await in_turns(
        lambda: first_event(files.long), lambda: first_event(files.short), settings.repeats
    )
    return plain(
        "backlog_open",
        turns.ours_s,
        unit="s to first event",
        baseline="with 10,000 events, s",
        baseline_values=turns.baseline_s,
        target="<= 0.2",
    )


async def run(settings: Settings) -> list[Result]:
    files = Files(settings.directory, settings.repeats)
    await files.build(settings)
    return [
        await open_and_handle(files, settings),
        await consume("backlog_consume_first", files.groups, files, settings),
        await consume("backlog_consume_middle", iter(files.middle), files, settings),
        await publish_onto(files, settings),
    ]


BENCHMARKS = [Benchmark(name="backlog", rows=ROWS, run=run)]
