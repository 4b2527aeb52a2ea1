"""Times, sizes and texts as people read them, each fit for a line of a terminal."""

from datetime import datetime

from eventlane.wording import duration, size

__all__ = ["ago", "duration", "lines", "moment", "one_line", "size"]


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, or in how long."""
    if at is None:
        return ""
    since_s = (now - at).total_seconds()
    if since_s <= -1:
        return f"in {duration(-since_s)}"
    return f"{duration(max(0.0, since_s))} ago"


def moment(at: datetime, now: datetime) -> str:
    """A time in UTC, and how long ago that is."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({ago(at, now)})"


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
