"""Words that messages to people are made of."""

import difflib
from collections.abc import Iterable

__all__ = ["counted", "did_you_mean", "key_in_words", "near"]


def near(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """A sentence with the nearest known word, after a space; nothing where none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f" Did you mean {found[0]!r}?" if found else ""


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
