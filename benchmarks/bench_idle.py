"""What a process costs that has much to listen to and little to do, in a process of its own."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.measuring import Benchmark, Result, Settings, figures_of, plain
from eventlane import App, Context, event

__all__ = ["BENCHMARKS"]

TOPICS = 1_000
GROUPS = 100
WINDOW_S = 4.0
SETTLED_S = 1.0
"""After the start, before it is measured."""
PAUSE_S = 1.0
"""Between two events, each of another topic and group."""
USED = 8
"""Topics that have events at all: the first event of a type costs more, for once."""


def event_of(number: int) -> type[msgspec.Struct]:
    made = msgspec.defstruct(f"Event{number}", [("key", str)])
    return event(topic=f"topic-{number}", key="key")(made)


async def idle(directory: Path, topics: int, groups: int, window_s: float, windows: int) -> None:
    types = [event_of(number) for number in range(topics)]
    handled = asyncio.Queue[object]()
    app = App(f"embedded:{directory}")

    async def handle(one: msgspec.Struct, _: Context) -> None:
        handled.put_nowait(one)

    for group in range(groups):
        app.subscribe(*types[group::groups], group=f"group-{group}")(handle)
    shares: list[float] = []
    async with app, app.handling():
        for used in types[:USED]:
            await app.publish(used(key="k"))
            await handled.get()
        await asyncio.sleep(SETTLED_S)
        published = 0
        for _ in range(windows):
            start_s, used_s = time.monotonic(), time.process_time()
            while time.monotonic() - start_s < window_s:
                await app.publish(types[published % min(USED, topics)](key="k"))
                await handled.get()
                published += 1
                await asyncio.sleep(PAUSE_S)
            took_s = time.monotonic() - start_s
            shares.append(100 * (time.process_time() - used_s) / took_s)
    figures = {str(number): share for number, share in enumerate(shares)}
    sys.stdout.write(json.dumps(figures) + "\n")


async def run(settings: Settings) -> list[Result]:
    topics = min(TOPICS, settings.events(TOPICS))
    groups = min(GROUPS, topics)
    window_s = WINDOW_S * min(1.0, settings.scale * 10)

    async def shares(directory: str, topics: int, groups: int, windows: int) -> list[float]:
        figures = await figures_of(
            __spec__.name, settings.directory / directory, topics, groups, window_s, windows
        )
        return list(figures.values())

    return [
        plain(
            "idle",
            await shares("many", topics, groups, settings.repeats),
            unit="% of a core",
            baseline="one topic and one group, with as many events",
            baseline_values=await shares("one", 1, 1, 1),
            target="<= 1",
            note=f"{topics:,} topics of 8 partitions, {groups} groups, an event a second in all.",
        )
    ]


BENCHMARKS = [Benchmark(name="idle", rows=("idle",), run=run)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("topics", type=int)
    parser.add_argument("groups", type=int)
    parser.add_argument("window_s", type=float)
    parser.add_argument("windows", type=int)
    chosen = parser.parse_args()
    asyncio.run(
        idle(chosen.directory, chosen.topics, chosen.groups, chosen.window_s, chosen.windows)
    )
