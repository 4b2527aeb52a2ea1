"""Words that messages to people are made of."""

import difflib
from collections.abc import Iterable

__all__ = ["counted", "did_you_mean", "duration", "key_in_words", "near", "nearest", "size"]

_UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "d"))


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The nearest known word; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def near(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """A sentence with the nearest known word, after a space; nothing where none is near."""
    found = nearest(word, known, likeness=likeness)
    return "" if found is None else f" Did you mean {found!r}?"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or all of them."""
    names = sorted(known)
    return near(word, names).lstrip() or f"Known: {', '.join(names) or 'none'}."


def counted(count: int, what: str) -> str:
    """`1 event`, `2 events`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def key_in_words(key: object) -> str:
    """A key as people read it: in quotes, as text where it is bytes."""
    return repr(key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key)


def duration(duration_s: float) -> str:
    """In the largest unit of which there are two, or one of seconds."""
    unit_s, name = _UNITS[0]
    for each_s, each in _UNITS[1:]:
        if duration_s >= 2 * each_s:
            unit_s, name = each_s, each
    return f"{int(duration_s / unit_s):,} {name}"


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
