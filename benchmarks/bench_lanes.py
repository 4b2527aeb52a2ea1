"""Acquiring a partition with a million parked lanes, in a process of its own.

Each lane has one event, whose first attempt failed. A thousand of them are due when the process
starts, and all others long after it has ended. So that the next process has a thousand, too, its
clock is an hour ahead of the one before.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench_memory import resident_mb_max
from benchmarks.filling import GROUP, fill_parked
from benchmarks.measuring import Benchmark, Result, Settings, figures_of, now_s, plain
from benchmarks.orders import Order
from eventlane import App, Context
from eventlane.clock import SystemClock

__all__ = ["BENCHMARKS"]

LANES = 1_000_000
FEW = 1_000
"""Lanes that are not due, in the small file."""
DUE = 1_000
ROUND_MS = 3_600_000
LONG_MS = 10_000 * ROUND_MS


class Later(SystemClock):
    """The machine's clock, but ahead."""

    def __init__(self, ahead_ms: int) -> None:
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_ms


async def acquire(directory: Path, number: int, due: int) -> None:
    handled_s: list[float] = []
    all_due = asyncio.Event()
    app = App(f"embedded:{directory}", clock=Later(number * ROUND_MS))

    @app.subscribe(Order, group=GROUP)
    async def handle(_order: Order, ctx: Context) -> None:
        assert ctx.attempt == 2
        handled_s.append(now_s())
        if len(handled_s) == due:
            all_due.set()

    async with app:
        before = (await app.status()).groups[GROUP]
        before_mb = resident_mb_max()
        start_s = now_s()
        async with app.handling():
            acquired_s = now_s() - start_s
            await all_due.wait()
        mb = resident_mb_max()
        after = (await app.status()).groups[GROUP]
    assert before.parked - after.parked == after.done - before.done == due
    figures = {
        "before_mb": before_mb,
        "more_mb": mb - before_mb,
        "acquired_s": acquired_s,
        "first_s": handled_s[0] - start_s,
        "all_s": handled_s[-1] - start_s,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


async def run(settings: Settings) -> list[Result]:
    rounds, due = settings.repeats + 1, settings.events(DUE)
    lanes = max(settings.events(LANES), (rounds + 1) * due)
    now_ms = SystemClock().now_ms()

    def due_ms(number: int) -> int:
        ahead_ms = number // due * ROUND_MS if number < rounds * due else LONG_MS
        return now_ms + ahead_ms

    many, few = settings.directory / "lanes-many", settings.directory / "lanes-few"
    start_s = now_s()
    await fill_parked(many, lanes, due_ms)
    built_s = now_s() - start_s
    await fill_parked(few, rounds * due + settings.events(FEW), due_ms)
    ours: list[dict[str, float]] = []
    baseline: list[dict[str, float]] = []
    for number in range(rounds):
        for directory, figures in ((many, ours), (few, baseline)):
            found = await figures_of(__spec__.name, directory, number, due)
            if number:  # the first turn does not count
                figures.append(found)

    def values(figures: Sequence[dict[str, float]], name: str) -> list[float]:
        return [each[name] for each in figures]

    def result(row: str, name: str, unit: str, target: str | None, note: str) -> Result:
        return plain(
            row,
            values(ours, name),
            unit=unit,
            baseline=f"with {(rounds + 1) * due:,} lanes or fewer",
            baseline_values=values(baseline, name),
            target=target,
            note=note,
        )

    acquired = values(ours, "acquired_s")
    return [
        result(
            "lanes_acquire",
            "first_s",
            "s to first due",
            "<= 1",
            f"{lanes:,} lanes, built in {built_s:.0f} s. Until the group is joined: "
            f"{min(acquired):.2f} to {max(acquired):.2f} s.",
        ),
        result(
            "lanes_memory", "more_mb", "MB more", "<= 100", "The highest, beyond that of the app."
        ),
        result("lanes_due", "all_s", "s to all due", None, f"{due:,} lanes are due."),
    ]


BENCHMARKS = [Benchmark(name="lanes", rows=("lanes_acquire", "lanes_memory", "lanes_due"), run=run)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("due", type=int)
    chosen = parser.parse_args()
    asyncio.run(acquire(chosen.directory, chosen.number, chosen.due))
