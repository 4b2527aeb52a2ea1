"""Resident memory while 1.47 M events are published as a stream and three groups handle them."""

import argparse
import asyncio
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.measuring import Benchmark, Result, Settings, figures_of, now_s, plain
from eventlane import App, Context, event

__all__ = ["BENCHMARKS"]

LINES = 1_470_000
GROUPS = ("inventory", "notification", "analytics")


@event(topic="lines", key="household")
class Line(msgspec.Struct):
    """A line of a receipt."""

    household: int
    basket: int
    product: int
    quantity: int
    sales_value: float
    store: int
    timestamp: str


def lines(count: int) -> Iterator[Line]:
    for number in range(count):
        yield Line(
            number % 2469,
            31_000_000_000 + number // 9,
            800_000 + number % 92_331,
            1 + number % 4,
            (number % 1999) / 100,
            number % 457,
            f"2017-{1 + number % 12:02}-{1 + number % 28:02} {number % 24:02}:30:00",
        )


def resident_mb_max() -> float:
    """The most that this process ever had in memory."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except FileNotFoundError:  # macOS; on Linux this figure is inherited from the parent
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


async def flow(directory: Path, count: int) -> None:
    app = App(f"embedded:{directory}")
    left: dict[str, int] = dict.fromkeys(GROUPS, count)
    end = asyncio.Event()

    def declare(group: str) -> None:
        @app.subscribe(Line, group=group)
        async def handle(_line: Line, _ctx: Context) -> None:
            left[group] -= 1
            if not left[group] and not any(left.values()):
                end.set()

    for group in GROUPS:
        declare(group)
    async with app:
        before_mb = resident_mb_max()
        start_s = now_s()
        async with app.handling():
            published = await app.publish_many(lines(count))
            published_s = now_s() - start_s
            await end.wait()
        assert published == count
    figures = {
        "before_mb": before_mb,
        "mb": resident_mb_max(),
        "published_s": published_s,
        "handled_s": now_s() - start_s,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


async def run(settings: Settings) -> list[Result]:
    count = settings.events(LINES)
    figures: list[dict[str, float]] = []
    for number in range(-(-settings.repeats * 2 // 5)):  # each takes long
        directory = settings.directory / f"memory-{number}"
        figures.append(await figures_of(__spec__.name, directory, count))
    return [
        plain(
            "memory",
            [each["mb"] for each in figures],
            unit="MB resident",
            baseline="the same process before the first event, MB",
            baseline_values=[each["before_mb"] for each in figures],
            target="<= 150",
            typical=max,
            note=f"{count:,} events into three groups: published within "
            f"{figures[0]['published_s']:.1f} s beside the handlers, handled within "
            f"{figures[0]['handled_s']:.1f} s.",
        )
    ]


BENCHMARKS = [Benchmark(name="memory", rows=("memory",), run=run)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("count", type=int)
    chosen = parser.parse_args()
    asyncio.run(flow(chosen.directory, chosen.count))
