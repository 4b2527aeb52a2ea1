"""Charts as SVG, drawn on the server, so that they need no script and read with JavaScript off.

The outer `<svg>` has no viewBox: it takes the width of its place and text keeps its size on every
screen. What must stretch (the columns) is a nested `<svg>` with a viewBox and
`preserveAspectRatio="none"`; what must not (labels) is put in per cent. Only presentation
attributes: the page's Content-Security-Policy refuses inline styles. All that comes from outside
(labels, titles) is escaped here, so templates take the result as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from markupsafe import escape

from .snapshot import Account, Bucket, BucketSize
from .wording import count, title

__all__ = ["account_bar", "columns", "progress_bar", "sparkline"]

PLOT_TOP, PLOT_HEIGHT, AXIS_WIDTH = 8, 132, 46
CHART_HEIGHT = PLOT_TOP + PLOT_HEIGHT + 22
COLUMNS_MIN: dict[BucketSize, int] = {"hour": 24, "day": 14}
"""Fewer buckets leave room at the right instead of drawing boulders."""
GAPS_MAX = 120
"""With more columns than this the gaps would only shimmer."""
SPARK_POINTS_MAX = 60
TOP_STEPS = (10, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100)
"""Where an axis may end, in tenths of its first digit: all have a round half."""


def nice_top(value: int) -> int:
    """The smallest round figure not below `value`: the axis ends there, and jumps seldom."""
    top = 2
    while top < value:
        tenth = 10 ** (len(str(top)) - 1) // 10
        steps = [step * tenth for step in TOP_STEPS] if tenth else range(2, 11, 2)
        top = next(step for step in steps if step > top)
    return top


def columns(
    buckets: Sequence[Bucket],
    size: BucketSize,
    value_of: Callable[[Bucket], int],
    *,
    label: str,
    axis: Callable[[int], str],
    exact: Callable[[int], str],
    still_growing: bool,
) -> str:
    """One column per bucket; the last one is pale while its hour or day is not over."""
    values = [value_of(bucket) for bucket in buckets]
    top = nice_top(max(values, default=0))
    slots = max(len(values), COLUMNS_MIN[size])
    pale = len(values) - 1 if still_growing else len(values)
    titles = "|".join(
        f"{title(bucket.start, size)}: {exact(value_of(bucket))}" for bucket in buckets
    )
    parts = [
        f'<div class="plot"><svg class="axis" aria-hidden="true" width="{AXIS_WIDTH}"',
        f' height="{CHART_HEIGHT}">',
        *_axis(top, axis),
        f'</svg><svg class="chart" role="img" width="100%" height="{CHART_HEIGHT}"',
        f' aria-label="{escape(label)}" data-titles="{escape(titles)}" data-slots="{slots}">',
        *_gridlines(top),
        *_time_axis(buckets, size, slots),
        f'<svg y="{PLOT_TOP}" width="100%" height="{PLOT_HEIGHT}" viewBox="0 0 {slots * 10} 1000"',
        ' preserveAspectRatio="none">',
        f'<path class="column" d="{_column_path(values[:pale], 0, top, slots)}"/>',
        f'<path class="column pale" d="{_column_path(values[pale:], pale, top, slots)}"/></svg>',
        f'<line class="cursor" y1="{PLOT_TOP}" y2="{PLOT_TOP + PLOT_HEIGHT}" visibility="hidden"/>',
        "</svg></div>",
    ]
    return "".join(parts)


def _height_of(value: int, top: int) -> float:
    return PLOT_TOP + PLOT_HEIGHT - PLOT_HEIGHT * value / top


def _axis(top: int, words: Callable[[int], str]) -> Iterator[str]:
    for value in (top, top // 2, 0):
        y = _height_of(value, top) + 4
        text = escape(words(value))
        yield f'<text class="tick" x="{AXIS_WIDTH - 8}" y="{y:g}" text-anchor="end">{text}</text>'


def _gridlines(top: int) -> Iterator[str]:
    for value in (top, top // 2, 0):
        y = _height_of(value, top)
        name = "grid" if value else "base"
        yield f'<line class="{name}" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>'


def _time_axis(buckets: Sequence[Bucket], size: BucketSize, slots: int) -> Iterator[str]:
    bottom = PLOT_TOP + PLOT_HEIGHT
    ticks = _ticks(buckets, size)
    for number, (index, text) in enumerate(ticks):
        x = f"{index * 100 / slots:.3f}%"
        minor = " minor" if number % 2 else ""
        # A label at the right edge ends at its mark; on a narrow screen the edge begins earlier.
        last = " last" if number == len(ticks) - 1 and index > slots * 0.86 else ""
        anchor = ' text-anchor="end"' if index > slots * 0.96 else ""
        yield f'<line class="mark{minor}" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>'
        yield f'<text class="tick{minor}{last}" x="{x}" y="{bottom + 17}"{anchor}>{text}</text>'


def _ticks(buckets: Sequence[Bucket], size: BucketSize) -> list[tuple[int, str]]:
    """About seven labels at round moments: hours, days, Mondays, or the first of a month."""
    if not buckets:
        return []
    if size == "hour":
        every = 6 if len(buckets) <= 48 else 24
        return [
            (index, f"{at:%H}:00" if at.hour else f"{at:%a} {at.day} {at:%b}")
            for index, at in enumerate(bucket.start for bucket in buckets)
            if at.hour % every == 0
        ]
    months = len(buckets) > 75
    every = 1 if len(buckets) <= 14 else 7

    def chosen(at: datetime) -> bool:
        return at.day == 1 if months else every == 1 or at.weekday() == 0

    starts = enumerate(bucket.start for bucket in buckets)
    return [
        (index, f"{at:%b}" if months else f"{at.day} {at:%b}") for index, at in starts if chosen(at)
    ]


def _column_path(values: Sequence[int], first: int, top: int, slots: int) -> str:
    """Columns, with gaps while there are few; a value above zero is always visible."""
    width = 10 if slots > GAPS_MAX else 8
    heights = [max(8, value * 1000 // top) if value else 0 for value in values]
    return "".join(
        f"M{(first + index) * 10} 1000v-{height}h{width}v{height}z"
        for index, height in enumerate(heights)
        if height
    )


def sparkline(values: Sequence[int]) -> str:
    """A small line without an axis: only the shape, on the time axis of the charts above it."""
    points = _thinned(values)
    top = max(points, default=0) or 1
    last = max(len(points) - 1, 1)
    path = "".join(
        f"{'L' if index else 'M'}{index * 100 / last:.4g} {19 - value * 18 / top:.3g}"
        for index, value in enumerate(points)
    )
    shape = f'<path d="{path}" vector-effect="non-scaling-stroke"/>' if len(points) > 1 else ""
    return (
        '<svg class="spark" aria-hidden="true" width="100%" height="20" viewBox="0 0 100 20"'
        f' preserveAspectRatio="none">{shape}</svg>'
    )


def _thinned(values: Sequence[int]) -> list[float]:
    """At most `SPARK_POINTS_MAX` means of neighbours: the shape stays, the bytes do not."""
    if len(values) <= SPARK_POINTS_MAX:
        return [float(value) for value in values]
    edges = [
        round(number * len(values) / SPARK_POINTS_MAX) for number in range(SPARK_POINTS_MAX + 1)
    ]
    return [sum(values[left:right]) / (right - left) for left, right in pairwise(edges)]


SEGMENTS = (
    "done",
    "in_flight",
    "held",
    "waiting",
    "parked",
    "dead",
    "archived",
    "skipped",
    "edited",
    "lost",
)


def account_bar(account: Account) -> str:
    """One bar of the whole account; a part above zero is never too thin to be seen."""
    shares = [(name, getattr(account, name)) for name in SEGMENTS if getattr(account, name)]
    total = sum(share for _, share in shares)
    widths = [max(0.8, share * 100 / total) for _, share in shares]
    words = (
        ", ".join(f"{count(share)} {name.replace('_', ' ')}" for name, share in shares)
        or "nothing yet"
    )
    return _bar(
        [(f"seg-{name}", width) for (name, _), width in zip(shares, widths, strict=True)], words
    )


def progress_bar(done: int, total: int) -> str:
    """A plain bar of how far something has come."""
    width = min(100.0, done * 100 / total) if total else 0.0
    return _bar([("seg-busy", width)], f"{count(done)} of {count(total)}", fill=False)


def _bar(parts: Sequence[tuple[str, float]], words: str, *, fill: bool = True) -> str:
    scale = 100 / sum(width for _, width in parts) if parts and fill else 1
    x, rectangles = 0.0, []
    for name, width in parts:
        rectangles.append(
            f'<rect class="{name}" x="{x:.2f}%" width="{width * scale:.2f}%" height="8"/>'
        )
        x += width * scale
    return (
        f'<svg class="bar" role="img" width="100%" height="8" aria-label="{escape(words)}">'
        f'<rect class="seg-none" width="100%" height="8"/>{"".join(rectangles)}</svg>'
    )
