"""Numbers, money and moments as people read them. In Python: a browser would round above 2**53."""

from datetime import UTC, datetime

from .snapshot import BucketSize

__all__ = [
    "clock_time",
    "count",
    "moment",
    "money",
    "money_axis",
    "percent",
    "plural",
    "range_of",
    "rate",
    "span",
    "title",
]

THIN_NO_BREAK = "\N{NARROW NO-BREAK SPACE}"


def count(number: int) -> str:
    """`1234567` as `1,234,567`."""
    return f"{number:,}"


def plural(number: int, singular: str, several: str | None = None) -> str:
    """`1 order`, `1,204 orders`."""
    return f"{number:,} {singular if number == 1 else several or singular + 's'}"


def money(cents: int) -> str:
    """Exact to the cent, from whole cents: `$1,234.05`."""
    sign = "-" if cents < 0 else ""
    return f"{sign}${abs(cents) // 100:,}.{abs(cents) % 100:02}"


def money_axis(cents: int) -> str:
    """A round figure beside a chart: `$500`, `$2.5k`, `$1.2M`."""
    dollars = cents / 100
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if dollars >= size:
            return f"${dollars / size:g}{unit}"
    return f"${dollars:g}"


def rate(per_s: float) -> str:
    """Three figures are as many as a moving rate deserves."""
    if 0 < per_s < 10:
        return f"{per_s:.1f}/s"
    digits = max(0, len(str(round(per_s))) - 3)
    return f"{round(per_s, -digits):,.0f}/s"


def percent(part: int, whole: int) -> str:
    """Never `100 %` before the last one is there, never `0 %` when there is one."""
    if whole <= 0 or part <= 0:
        return f"0{THIN_NO_BREAK}%"
    if part < whole:
        exact = min(99.9, max(0.1, part * 100 / whole))
        return f"{exact:.1f}{THIN_NO_BREAK}%"
    return f"100{THIN_NO_BREAK}%"


def span(length_s: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`."""
    if length_s < 1:
        return f"{max(0.0, length_s):.1f} s"
    if length_s < 60:
        return f"{length_s:.0f} s"
    if length_s < 3600:
        return f"{length_s // 60:.0f} min"
    return f"{length_s // 3600:.0f} h"


def clock_time(when: datetime) -> str:
    """A moment of today, on the wall: `12:03:04 UTC`."""
    return f"{when.astimezone(UTC):%H:%M:%S} UTC"


def moment(when: datetime, now: datetime) -> str:
    """`12:03:04 UTC`, and of another day `24 Nov 2026, 12:03:04 UTC`."""
    when = when.astimezone(UTC)
    day = "" if when.date() == now.astimezone(UTC).date() else f"{when.day} {when:%b %Y}, "
    return f"{day}{when:%H:%M:%S} UTC"


def title(start: datetime, size: BucketSize) -> str:
    """A bucket's name: `Sat 18 Feb 2017`, and by hour `Sat 18 Feb 2017, 13:00`."""
    day = f"{start:%a} {start.day} {start:%b %Y}"
    return day if size == "day" else f"{day}, {start:%H}:00"


def range_of(first: datetime, last: datetime) -> str:
    """The days from first to last: `1 Jan to 18 Feb 2017`."""
    if first.date() == last.date():
        return f"{first.day} {first:%b %Y}"
    left = f"{first.day} {first:%b}" if first.year == last.year else f"{first.day} {first:%b %Y}"
    return f"{left} to {last.day} {last:%b %Y}"
