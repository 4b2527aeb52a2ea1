"""Measuring two things in turns, and the row that says what came of it."""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

__all__ = [
    "Benchmark",
    "Measure",
    "Result",
    "Row",
    "Settings",
    "Turns",
    "compared",
    "figures_of",
    "in_turns",
    "now_s",
    "plain",
]

now_s = time.perf_counter

Measure = Callable[[], Awaitable[float]]
"""Does the work once; gives the seconds that the part to be measured took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much is measured, and where the files lie."""

    directory: Path
    """For files that are gone afterwards; what is fsynced is fsynced to this disk."""
    repeats: int = 5
    scale: float = 1.0
    """Of the work that is done; below 1 only to try out the benchmarks themselves."""

    def events(self, count: int) -> int:
        """So many events, scaled."""
        return max(16, int(count * self.scale))


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of the JSON. The target is compared with the ratio, or with the value without one."""

    name: str
    value: float
    unit: str
    baseline: str
    """What `value` is compared with."""
    baseline_value: float
    ratio: float | None = None
    target: str | None = None
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A row, and what only people read."""

    row: Row
    spread: tuple[float, float]
    """The lowest and the highest of what the target is compared with."""
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        row = self.row
        if row.target is None:
            return None
        direction, bound = row.target.split()
        found = row.value if row.ratio is None else row.ratio
        return found >= float(bound) if direction == ">=" else found <= float(bound)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Work that gives one or more rows."""

    name: str
    rows: tuple[str, ...]
    """The names of its rows."""
    run: Callable[[Settings], Coroutine[Any, Any, list[Result]]]


@dataclass(slots=True)
class Turns:
    """Seconds of two things that were measured in turns."""

    ours_s: list[float] = field(default_factory=list)
    baseline_s: list[float] = field(default_factory=list)


async def in_turns(ours: Measure, baseline: Measure, repeats: int) -> Turns:
    """A B A B …, after one turn that does not count.

    A machine is busy for seconds and then is not: two things that are measured next to each other
    suffer alike, and the ratio of such a pair says more than the ratio of two averages.
    """
    turns = Turns()
    for turn in range(-1, repeats):
        seconds: list[float] = []
        for measure in (ours, baseline):
            gc.collect()
            seconds.append(await measure())
        if turn >= 0:
            turns.ours_s.append(seconds[0])
            turns.baseline_s.append(seconds[1])
    return turns


def compared(
    name: str,
    turns: Turns,
    events: int,
    *,
    unit: Literal["events/s", "us/event"] = "events/s",
    baseline: str,
    target: str | None = None,
    note: str = "",
) -> Result:
    """The row of what was measured in turns: medians, and the median of the pairs' ratios."""

    def in_unit(took_s: float) -> float:
        return events / took_s if unit == "events/s" else took_s / events * 1e6

    ours = [in_unit(each) for each in turns.ours_s]
    theirs = [in_unit(each) for each in turns.baseline_s]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Result(
        row=Row(
            name=name,
            value=rounded(statistics.median(ours)),
            unit=unit,
            baseline=baseline,
            baseline_value=rounded(statistics.median(theirs)),
            ratio=rounded(statistics.median(ratios)),
            target=target,
            repeats=len(ratios),
        ),
        spread=(min(ratios), max(ratios)),
        note=note,
    )


def plain(
    name: str,
    values: Sequence[float],
    *,
    unit: str,
    baseline: str,
    baseline_values: Sequence[float],
    target: str | None,
    typical: Callable[[Sequence[float]], float] = statistics.median,
    note: str = "",
) -> Result:
    """The row of something whose target is for the value itself."""
    return Result(
        row=Row(
            name=name,
            value=rounded(typical(values)),
            unit=unit,
            baseline=baseline,
            baseline_value=rounded(statistics.median(baseline_values)),
            target=target,
            repeats=len(values),
        ),
        spread=(min(values), max(values)),
        note=note,
    )


async def figures_of(module: str, *arguments: object) -> dict[str, float]:
    """What a module of these says, as JSON, that runs in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    figures: dict[str, float] = json.loads(output)
    return figures


def rounded(number: float) -> float:
    """Four digits: more would claim what no machine repeats."""
    return float(f"{number:.4g}")
