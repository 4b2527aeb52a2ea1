"""What a seed draws before anything happens: the groups, the bounds, the faults that there may be.

Each history gets only some of everything (groups, acts of handlers, faults), so that what hides
behind one of them is found as well.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from eventlane.config import Limits
from eventlane.handler import Batch
from eventlane.outcome import LaneOnDead
from eventlane.retry import Retry

__all__ = ["FINE", "Act", "Fault", "Group", "Plan", "draw"]

T = TypeVar("T")

_Fine = Literal["done", "slow", "publish", "skip", "leak"]
_Failing = Literal["fail", "slow fail", "later", "dead", "dead, go on", "dead, stop", "nonsense"]
_Ending = Literal["hang", "stubborn", "cancel", "pause", "kill"]
Act = _Fine | _Failing | _Ending | Literal["be out"]
"""What a handler does in one run."""
FINE: tuple[_Fine, ...] = get_args(_Fine)
"""Acts after which the event is handled."""
_TROUBLE: tuple[Act, ...] = ("fail", "fail", *get_args(_Failing), *get_args(_Ending))

_Death = Literal["kill", "kill after commit", "kill unnoticed", "stop"]
_Delay = Literal["freeze", "freeze at write", "stall", "slow disk"]
Fault = _Death | _Delay | Literal["grow", "failing disk", "outage", "clock forward", "clock back"]
"""What befalls processes, and what they stand on."""
_FAULTS: tuple[Fault, ...] = tuple(fault for each in get_args(Fault) for fault in get_args(each))

_Ordering = Literal["key", "partition", "none"]
_Kind = Literal["async", "sync", "list"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group, and how its handlers behave."""

    name: str
    ordering: _Ordering
    on_dead: LaneOnDead
    retry: Retry
    kind: _Kind
    timeout_s: float | None
    concurrency: int
    batch: Batch | None
    needs_more: bool
    """It needs something outside, which can be out."""
    failing: tuple[Act, ...]
    """What its handlers may do to an event, besides what is fine."""
    trouble_ratio: float
    """How many events have such a fate."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A history before it happens."""

    limits: Limits
    partitions: int
    keys: str
    events_count: int
    gap_s: float
    """Between two publishes, on average."""
    groups: tuple[Group, ...]
    workers: tuple[tuple[int, ...], ...]
    """For each worker the groups that it runs."""
    faults: tuple[Fault, ...]
    faults_per_s: float
    troubled_s: float
    """How long there are faults."""
    operator_gap_s: float
    tries_idle: bool
    """In the end workers run until they are idle, and start again."""


def draw(chance: random.Random) -> Plan:
    """Draw a plan."""
    events_count, gap_s = chance.choice((8, 16, 24, 32)), chance.choice((0.004, 0.02, 0.05))
    groups = tuple(_group(chance, number) for number in range(chance.choice((1, 2, 2, 3))))
    every = tuple(range(len(groups)))
    others = range(chance.choice((0, 1, 1, 2)))
    workers = [every, *(tuple(_most(chance, every)) or every for _ in others)]
    return Plan(
        limits=_limits(chance),
        partitions=chance.choice((1, 1, 2, 3)),
        keys="abcdefgh"[: chance.choice((1, 2, 3, 5, 8))],
        events_count=events_count,
        gap_s=gap_s,
        groups=groups,
        workers=tuple(workers),
        faults=_some(chance, _FAULTS),
        faults_per_s=chance.choice((0.0, 3.0, 6.0, 12.0)),
        troubled_s=0.5 + events_count * gap_s,
        operator_gap_s=chance.choice((0.05, 0.15, 0.5)),
        tries_idle=chance.random() < 0.3,
    )


def _most(chance: random.Random, groups: Sequence[int]) -> list[int]:
    return [each for each in groups if chance.random() < 0.8]


def _some(chance: random.Random, things: Sequence[T]) -> tuple[T, ...]:
    share = chance.choice((0.15, 0.5, 1.0))
    return tuple(each for each in things if chance.random() < share)


_PARK: tuple[_Ordering, LaneOnDead] = ("key", "park")
_ORDERS: tuple[tuple[_Ordering, LaneOnDead], ...] = (
    *(_PARK, _PARK, _PARK, _PARK),
    ("key", "continue"),
    ("key", "stop"),
    ("partition", "stop"),
    ("partition", "continue"),
    ("none", "continue"),
)
_KINDS: tuple[_Kind, ...] = ("async", "async", "async", "async", "sync", "list")


def _group(chance: random.Random, number: int) -> Group:
    ordering, on_dead = chance.choice(_ORDERS)
    kind = chance.choice(_KINDS)
    failing: tuple[Act, ...] = _some(chance, _TROUBLE)
    timeout_s = None if kind == "sync" else chance.choice((None, 0.4, 0.5))
    if timeout_s is None:
        failing = tuple(each for each in failing if each not in ("hang", "stubborn"))
    return Group(
        name=f"g{number}",
        ordering=ordering,
        on_dead=on_dead,
        retry=Retry(
            attempts=chance.choice((1, 2, 3, 4)),
            delay_s=chance.choice((0.0, 0.05, 0.2, 0.6)),
            factor=chance.choice((1.0, 2.0)),
            jitter=chance.choice((0.0, 0.2)),
            immediate=chance.choice((0, 1)),
            elapsed_s_max=chance.choice((None, None, 1.0)),
        ),
        kind=kind,
        timeout_s=timeout_s,
        concurrency=chance.choice((1, 2, 4, 100)),
        batch=Batch(chance.choice((2, 5)), chance.choice((0.0, 0.05))) if kind == "list" else None,
        needs_more=chance.random() < 0.3,
        failing=failing,
        trouble_ratio=chance.choice((0.05, 0.2, 0.5)) if failing else 0.0,
    )


def _limits(chance: random.Random) -> Limits:
    return Limits(
        span_max=chance.choice((3, 10, 10_000)),
        hold_s_max=chance.choice((0.1, 0.3, 30.0)),
        settled_bytes_max=chance.choice((4, 65_536)),
        parked_lanes_max=chance.choice((1, 2, 20_000)),
        parked_per_key_max=chance.choice((1, 3, 1_000)),
        crashes_max=chance.choice((1, 2)),
        replays_max=chance.choice((2, 1_000)),
        retry_tokens_max=chance.choice((20, 1_000)),
        breaker_runs=(breaker_runs := chance.choice((4, 100))),
        breaker_lanes_min=breaker_runs // 4,
        drain_s=0.5,
        lease_s=0.4,
        stall_s_max=0.2,
        stuck_s=0.5,
        publish_queue_max=chance.choice((2, 100_000)),
        publish_timeout_s=0.3,
        fetch_events_max=chance.choice((1, 4, 4_000)),
        settle_events_max=chance.choice((3, 20_000)),
    )
