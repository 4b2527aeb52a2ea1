"""A million dead letters, and a million events parked behind them, in one file.

What must not grow with them: opening the file, the first page of a search, and handling, be it in
another group, or of other keys in the very partitions in which they lie. And a replay of many of
them, in a process of its own.
"""

import argparse
import asyncio
import dataclasses
import json
import shutil
import sys
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from benchmarks.bench_consume import Seen
from benchmarks.bench_memory import resident_mb_max
from benchmarks.filling import (
    ERRORS,
    GROUP,
    HANDLERS,
    TYPES,
    VERSIONS,
    fill_dead,
    fill_done,
    fingerprint,
    key,
)
from benchmarks.measuring import (
    Benchmark,
    Result,
    Settings,
    compared,
    figures_of,
    in_turns,
    now_s,
    plain,
)
from benchmarks.orders import Order, orders
from eventlane import App, Context, Query, event

__all__ = ["BENCHMARKS"]

LETTERS = 1_000_000
FEW = 1_000
HEALTHY = 200_000
REPLAYED = 100_000
PAGE = 1_000
"""What `App.dead_letters` gives by default."""


@event(topic="others", key="customer")
class Other(Order):
    """The same on another topic."""


class Files:
    """The file with many letters, one with few, and one with none in which as much was handled."""

    def __init__(self, settings: Settings) -> None:
        self.many = settings.directory / "letters-many"
        self.few = settings.directory / "letters-few"
        self.none = settings.directory / "letters-none"
        self.letters = settings.events(LETTERS)
        self.groups = map("group-{}".format, count())
        self.middle = datetime.now(UTC)
        """When about half of the letters had died."""
        self.built_s = 0.0
        self._settings = settings

    async def build(self) -> None:
        start, start_s = datetime.now(UTC), now_s()
        await fill_dead(self.many, self.letters, has_followers=True)
        self.built_s = now_s() - start_s
        self.middle = start + (datetime.now(UTC) - start) / 2
        async with App(f"embedded:{self.many}") as app:
            account = (await app.status()).groups[GROUP]
            assert account.balances
            assert account.dead == account.parked == self.letters
        await fill_dead(self.few, self._settings.events(FEW), has_followers=True)
        await fill_done(self.none, self.letters, 2)

    @property
    def note(self) -> str:
        size_bytes = sum(each.stat().st_size for each in self.many.iterdir() if each.is_file())
        return (
            f"{self.letters:,} letters, and an event parked behind each: "
            f"{size_bytes / 1e9:.2f} GB, built in {self.built_s:.0f} s."
        )


# --- opening ----------------------------------------------------------------------------------


async def status_s(directory: Path) -> float:
    start_s = now_s()
    async with App(f"embedded:{directory}") as app:
        await app.status()
        return now_s() - start_s


async def first_event_s(directory: Path) -> float:
    """Until an event of a healthy key is handled, in the group that has all these letters."""
    async with App(f"embedded:{directory}") as app:
        await app.publish(orders(1)[0])
    seen = Seen(1)
    app = App(f"embedded:{directory}")
    app.subscribe(Order, group=GROUP)(seen.handle)
    start_s = now_s()
    async with app, app.handling():
        await seen.all.wait()
    return seen.last_s - start_s


async def opening(files: Files, settings: Settings) -> list[Result]:
    results: list[Result] = []
    for name, measure, unit in (
        ("letters_open", status_s, "s to status"),
        ("letters_handle", first_event_s, "s to first event"),
    ):
        turns = await in_turns(
            partial(measure, files.many), partial(measure, files.few), settings.repeats
        )
        results.append(
            plain(
                name,
                turns.ours_s,
                unit=unit,
                baseline="with 1,000 letters, s",
                baseline_values=turns.baseline_s,
                target="<= 1",
                note=files.note,
            )
        )
    return results


# --- searching --------------------------------------------------------------------------------


SEARCHES = {
    "state": Query(),
    "exception": Query(exception=ERRORS[3]),
    "key": Query(key=key(17)),
    "fingerprint": Query(fingerprint=fingerprint(21)),
    "type": Query(type=TYPES[1]),
    "handler": Query(handler=HANDLERS[2]),
    "version": Query(app_version=VERSIONS[7]),
    "since": Query(),
    "several": Query(exception=ERRORS[3], app_version=VERSIONS[7]),
    "nothing": Query(exception="NeverRaised"),
    "no_key": Query(key="none-of-these"),
}
"""All of them with group and state; some from the middle of the time on in which letters died."""
SINCE_THE_MIDDLE = ("since", "several")


async def searching(files: Files, settings: Settings) -> list[Result]:
    """Each on a connection that was opened a moment ago."""

    async def page_ms(directory: Path, query: Query) -> tuple[float, int]:
        async with App(f"embedded:{directory}") as app:
            start_s = now_s()
            found = await app.dead_letters(group=GROUP, state="open", query=query, limit=PAGE)
            return (now_s() - start_s) * 1000, len(found)

    results: list[Result] = []
    for name, search in SEARCHES.items():
        is_late = name in SINCE_THE_MIDDLE
        query = dataclasses.replace(search, since=files.middle) if is_late else search
        found = 0

        async def many(query: Query = query) -> float:
            nonlocal found
            took_ms, found = await page_ms(files.many, query)
            return took_ms

        async def few(query: Query = query) -> float:
            return (await page_ms(files.few, query))[0]

        turns = await in_turns(many, few, settings.repeats)
        results.append(
            plain(
                f"letters_find_{name}",
                turns.ours_s,
                unit="ms a page",
                baseline="with 1,000 letters, ms",
                baseline_values=turns.baseline_s,
                target="<= 50",
                note=f"{str(query) or 'group and state'!r}: {found:,} letters.",
            )
        )
    return results


# --- handling beside them ---------------------------------------------------------------------


async def handled_s(directory: Path, group: str, kind: type[Order], events: int) -> float:
    """Seconds from the first event to the last one: what starting costs has rows of its own."""
    seen = Seen(events)
    first_s = 0.0

    async def handle(event: Order, ctx: Context) -> None:
        nonlocal first_s
        first_s = first_s or now_s()
        await seen.handle(event, ctx)

    app = App(f"embedded:{directory}")
    app.subscribe(kind, group=group)(handle)
    async with app, app.handling():
        await seen.all.wait()
    return seen.last_s - first_s


async def beside(files: Files, settings: Settings) -> list[Result]:
    healthy = orders(settings.events(HEALTHY))

    async def other_group(directory: Path) -> float:
        return await handled_s(directory, next(files.groups), Other, len(healthy))

    async def same_partitions(directory: Path) -> float:
        async with App(f"embedded:{directory}") as app:
            await app.publish_many(healthy)
        return await handled_s(directory, GROUP, Order, len(healthy))

    for directory in (files.many, files.none):
        async with App(f"embedded:{directory}") as app:
            await app.publish_many(Other(*msgspec.structs.astuple(each)) for each in healthy)
    results: list[Result] = []
    for name, measure in (
        ("letters_other_group", other_group),
        ("letters_same_partitions", same_partitions),
    ):
        turns = await in_turns(
            partial(measure, files.many), partial(measure, files.none), settings.repeats
        )
        results.append(
            compared(
                name,
                turns,
                len(healthy),
                unit="us/event",
                baseline="where all of it was handled",
                target="<= 1.1",
            )
        )
    return results


async def million(settings: Settings) -> list[Result]:
    files = Files(settings)
    await files.build()
    return [
        *await opening(files, settings),
        *await searching(files, settings),
        *await beside(files, settings),
    ]


# --- replay -----------------------------------------------------------------------------------


async def replay(directory: Path, letters: int) -> None:
    app = App(f"embedded:{directory}")
    seen, again = Seen(letters), Seen(letters)
    app.subscribe(Order, group=GROUP)(seen.handle)
    async with app, app.handling():
        before_mb = resident_mb_max()
        start_s = now_s()
        operation = await app.replay(
            Query(group=GROUP), reason="mended", rate_per_s=None, canary=False, pause_above=None
        )
        begun_s = now_s() - start_s
        status = await operation.wait()
        took_s = now_s() - start_s
    mb = resident_mb_max()
    assert status.resolved == status.total == letters
    assert seen.all.is_set()
    fresh = App(f"embedded:{directory}")
    fresh.subscribe(Order, group="fresh")(again.handle)
    async with fresh:
        start_s = now_s()
        async with fresh.handling():
            await again.all.wait()
        fresh_s = now_s() - start_s
    figures = {
        "replayed_per_s": letters / took_s,
        "handled_per_s": letters / fresh_s,
        "begun_s": begun_s,
        "before_mb": before_mb,
        "mb": mb,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


async def replaying(settings: Settings) -> list[Result]:
    letters = settings.events(REPLAYED)
    original = settings.directory / "replay"
    await fill_dead(original, letters, has_followers=False)
    figures: list[dict[str, float]] = []
    for number in range(settings.repeats + 1):
        directory = settings.directory / f"replay-{number}"
        shutil.copytree(original, directory)
        found = await figures_of(__spec__.name, directory, letters)
        shutil.rmtree(directory)
        if number:  # the first turn does not count
            figures.append(found)

    def values(name: str) -> list[float]:
        return [each[name] for each in figures]

    begun_s = values("begun_s")
    return [
        plain(
            "replay_rate",
            values("replayed_per_s"),
            unit="letters/s",
            baseline="the same events into a group that is new, events/s",
            baseline_values=values("handled_per_s"),
            target=">= 10000",
            note=f"{letters:,} letters by a query, until the operation has ended. It was begun "
            f"after {min(begun_s):.2f} to {max(begun_s):.2f} s.",
        ),
        plain(
            "replay_memory",
            values("mb"),
            unit="MB resident",
            baseline="the same process before the replay, MB",
            baseline_values=values("before_mb"),
            target=None,
            typical=max,
        ),
    ]


BENCHMARKS = [
    Benchmark(
        name="letters",
        rows=(
            "letters_open",
            "letters_handle",
            *(f"letters_find_{name}" for name in SEARCHES),
            "letters_other_group",
            "letters_same_partitions",
        ),
        run=million,
    ),
    Benchmark(name="replay", rows=("replay_rate", "replay_memory"), run=replaying),
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("letters", type=int)
    chosen = parser.parse_args()
    asyncio.run(replay(chosen.directory, chosen.letters))
