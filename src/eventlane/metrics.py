"""Metrics: which there are, how those of several processes are added up, and how they are written.

The text is Prometheus' format 0.0.4, made by hand: it is less than its library would be to carry,
which has registries of its own for several processes where a worker's report is enough.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec

__all__ = ["BOUNDS_S", "CONTENT_TYPE", "FAMILIES", "Family", "Histogram", "Series", "added", "text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS_S = (
    *(0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper ends of the buckets of every histogram, in seconds."""


class Family(NamedTuple):
    """A metric: what is the same for all that has its name."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


FAMILIES: dict[str, Family] = {
    # What processes count: it begins at 0 with `eventlane run`.
    "eventlane_attempts_total": Family(
        "counter", ("group", "outcome"), "Runs of handlers whose outcome is durable, replays apart."
    ),
    "eventlane_failures_total": Family(
        "counter", ("group", "handler", "kind"), "Runs that did not end well, by what ended them."
    ),
    "eventlane_replays_total": Family(
        "counter", ("group", "outcome"), "Replays of dead letters, by what became of them."
    ),
    "eventlane_parked_total": Family("counter", ("group",), "Events put into the parking store."),
    "eventlane_redelivered_total": Family(
        "counter", ("group",), "Events that may have been in flight in a process that died."
    ),
    "eventlane_handler_seconds": Family(
        "histogram", ("group", "handler"), "How long a run of a handler lasts; a sample of them."
    ),
    "eventlane_settle_seconds": Family(
        "histogram", ("group",), "How long outcomes take to become durable once writing begins."
    ),
    "eventlane_storage_seconds": Family(
        "histogram", ("step",), "How long a transaction takes: turn, transaction, commit."
    ),
    # What the broker has: durable, the same from every process.
    "eventlane_lag_events": Family(
        "gauge", ("group", "topic", "partition"), "Events without an outcome, parked ones apart."
    ),
    "eventlane_lag_seconds": Family(
        "gauge", ("group", "topic", "partition"), "Age of the oldest of these events."
    ),
    "eventlane_group_events": Family(
        "gauge", ("group", "state"), "The account of a group: where each of its events is."
    ),
    "eventlane_group_members": Family("gauge", ("group",), "Live processes that handle it."),
    "eventlane_group_absent_seconds": Family(
        "gauge", ("group",), "For how long no process has handled it."
    ),
    "eventlane_group_paused": Family("gauge", ("group",), "1 while it is paused."),
    "eventlane_group_blocked": Family(
        "gauge", ("group",), "Reasons why something of it does not go on; see eventlane status."
    ),
    "eventlane_group_commands": Family(
        "gauge", ("group",), "Operators' commands that are not carried out yet."
    ),
    "eventlane_group_retained_bytes": Family(
        "gauge", ("group",), "What the log keeps for it: from its watermarks to the end."
    ),
    "eventlane_topic_events_total": Family("counter", ("topic",), "Events ever appended."),
    "eventlane_topic_bytes": Family("gauge", ("topic",), "What the log holds of it."),
    # What a supervisor knows.
    "eventlane_workers": Family("gauge", (), "Workers that are ready."),
    "eventlane_worker_failures_total": Family(
        "counter", (), "Workers that ended without being asked to."
    ),
}


class Series(msgspec.Struct, frozen=True, array_like=True):
    """One metric with one set of labels, as it is now."""

    name: str
    labels: tuple[str, ...]
    """Values, in the order in which the family names the labels."""
    values: tuple[float, ...]
    """One; of a histogram its sum, and what is in each bucket, beyond the last bound too."""


class Histogram:
    """Counts durations. One thread observes, any may look."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self._sum_s += duration_s

    @property
    def values(self) -> tuple[float, ...]:
        """See `Series.values`."""
        return (self._sum_s, *self._counts)


def added(parts: Iterable[Iterable[Series]]) -> list[Series]:
    """The sum of what several processes say."""
    sums: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}
    for part in parts:
        for each in part:
            place = (each.name, each.labels)
            before = sums.get(place)
            sums[place] = (
                each.values
                if before is None
                else tuple(a + b for a, b in zip(before, each.values, strict=True))
            )
    return [Series(name, labels, values) for (name, labels), values in sums.items()]


def text(series: Iterable[Series]) -> str:
    """All of it in the text format; families without any are left out."""
    by_name: dict[str, list[Series]] = {}
    for each in series:
        by_name.setdefault(each.name, []).append(each)
    lines: list[str] = []
    for name, family in FAMILIES.items():
        if name in by_name:
            lines += (f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}")
            for each in by_name[name]:
                lines += _lines(each, family)
    return "".join(f"{line}\n" for line in lines)


def _lines(series: Series, family: Family) -> Iterator[str]:
    pairs = [
        f'{label}="{_escaped(value)}"'
        for label, value in zip(family.labels, series.labels, strict=True)
    ]
    name, first, *counts = series.name, *series.values
    if family.kind != "histogram":
        yield f"{name}{_braces(pairs)} {_number(first)}"
        return
    so_far = 0.0
    for bound, count in zip((*map(_number, BOUNDS_S), "+Inf"), counts, strict=True):
        so_far += count
        le = f'le="{bound}"'
        yield f"{name}_bucket{_braces([*pairs, le])} {_number(so_far)}"
    yield f"{name}_sum{_braces(pairs)} {_number(first)}"
    yield f"{name}_count{_braces(pairs)} {_number(so_far)}"


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
