"""What the dashboard shows, as plain values, and the seam through which it gets them.

The page knows nothing about Eventlane: it draws a `Snapshot`. `live.py` makes one from the
framework's public API and the analytics database; the tests make one from an invented shop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

__all__ = [
    "Account",
    "Bucket",
    "BucketSize",
    "DashboardSource",
    "Department",
    "Kind",
    "Letter",
    "LogCount",
    "Rebuild",
    "Snapshot",
    "SourceUnavailable",
    "Totals",
    "bucket_size",
    "bucket_start",
    "bucket_starts",
]

BucketSize = Literal["hour", "day"]
BUCKET_STEPS: dict[BucketSize, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
HOURLY_SPAN_MAX = timedelta(days=7)
"""A longer range is drawn by day: a narrow screen cannot show more than 168 columns apart."""


class SourceUnavailable(Exception):
    """The figures cannot be read just now. The page keeps the last ones and says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What became of the orders in one group. The ten counts add up to what entered the group."""

    done: int = 0
    waiting: int = 0
    in_flight: int = 0
    held: int = 0
    parked: int = 0
    dead: int = 0
    archived: int = 0
    skipped: int = 0
    edited: int = 0
    lost: int = 0
    done_per_s: float = 0.0

    @property
    def open(self) -> int:
        """Those that still move by themselves; parked ones wait for somebody."""
        return self.waiting + self.in_flight + self.held

    @property
    def entered(self) -> int:
        settled = (
            self.done
            + self.parked
            + self.dead
            + self.archived
            + self.skipped
            + self.edited
            + self.lost
        )
        return settled + self.open


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """One dead letter, as far as a newcomer needs it to understand what went wrong."""

    id: str
    household: str
    order_id: str
    attempts: int
    message: str
    failed_at: datetime
    parked_behind: int = 0
    state: str = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The open dead letters of one exception class."""

    name: str
    count: int
    last_message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One hour or one day of the shop's own time (a year long gone, not the wall clock)."""

    start: datetime
    orders: int
    revenue_cents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Department:
    """`revenue_by_bucket` has one entry per bucket of the `Totals` that it belongs to."""

    name: str
    orders: int
    revenue_cents: int
    revenue_by_bucket: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What analytics has counted. Buckets follow each other without a gap; quiet ones are zero."""

    orders: int = 0
    revenue_cents: int = 0
    size: BucketSize = "hour"
    buckets: tuple[Bucket, ...] = ()
    departments: tuple[Department, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LogCount:
    """An independent count of the log, made without the analytics group."""

    orders: int
    revenue_cents: int
    as_of: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuild:
    """How the latest rebuild by replay stands. `done` and `total` are orders."""

    state: Literal["never", "running", "finished", "interrupted"] = "never"
    done: int = 0
    total: int = 0
    lasted_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything that the page shows, read at one moment."""

    as_of: datetime
    published: int = 0
    expected: int | None = None
    """How many orders this run will publish, where that is known."""
    publishing: bool = False
    published_per_s: float = 0.0
    groups: Mapping[str, Account] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = ()
    totals: Totals = Totals()
    log: LogCount | None = None
    rebuild: Rebuild = Rebuild()


class DashboardSource(Protocol):
    """Where the figures come from."""

    async def snapshot(self) -> Snapshot:
        """All figures of the front page; called at most twice a second however many people watch.

        Raises:
            SourceUnavailable: Nothing could be read; the message is shown.
        """
        ...

    async def letters(self, kind: str, *, limit: int) -> Sequence[Letter]:
        """The latest open dead letters of one kind, the newest first.

        Raises:
            SourceUnavailable: Nothing could be read; the message is shown.
        """
        ...

    async def rebuild(self) -> None:
        """Start to count all totals again from the log, and return at once.

        If a rebuild is running, nothing happens.

        Raises:
            SourceUnavailable: It could not be started; nothing was changed.
        """
        ...


def bucket_size(first: datetime, last: datetime) -> BucketSize:
    """The finest bucket in which the range from `first` to `last` can still be drawn."""
    return "hour" if last - first < HOURLY_SPAN_MAX else "day"


def bucket_start(moment: datetime, size: BucketSize) -> datetime:
    """The start of the bucket that `moment` falls into."""
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return hour if size == "hour" else hour.replace(hour=0)


def bucket_starts(first: datetime, last: datetime, size: BucketSize) -> list[datetime]:
    """The starts of all buckets from the one of `first` to the one of `last`."""
    step = BUCKET_STEPS[size]
    start, end = bucket_start(first, size), bucket_start(last, size)
    return [start + step * number for number in range((end - start) // step + 1)]
