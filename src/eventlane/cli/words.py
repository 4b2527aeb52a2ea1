"""Times, sizes and texts as people read them, each fit for a line of a terminal."""

from datetime import datetime

__all__ = ["ago", "duration", "lines", "moment", "one_line", "size"]

_UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "d"))


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, or in how long."""
    if at is None:
        return ""
    since_s = (now - at).total_seconds()
    if since_s <= -1:
        return f"in {duration(-since_s)}"
    return f"{duration(max(0.0, since_s))} ago"


def duration(duration_s: float) -> str:
    """In the largest unit of which there are two, or one of seconds."""
    unit_s, name = _UNITS[0]
    for each_s, each in _UNITS[1:]:
        if duration_s >= 2 * each_s:
            unit_s, name = each_s, each
    return f"{int(duration_s / unit_s):,} {name}"


def moment(at: datetime, now: datetime) -> str:
    """A time in UTC, and how long ago that is."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({ago(at, now)})"


def size(size_bytes: int) -> str:
    """A size in the unit that leaves up to three digits before the point."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    rest = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        rest /= 1000
        if rest < 999.95:
            return f"{rest:.1f} {unit}"
    return f"{rest:,.0f} TB"


def one_line(text: str | bytes | None) -> str:
    """A text without what moves a cursor, changes colours or ends the line."""
    if text is None:
        return ""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(one_line(line) for line in text.expandtabs().split("\n"))
