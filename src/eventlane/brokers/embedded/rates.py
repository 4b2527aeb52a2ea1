"""When the next permit of a named rate is free: one row for each name."""

import math

from eventlane.brokers.embedded.work import Transaction

__all__ = ["forget_rate", "reserve"]

_SET_BACK_MS_MIN = 1_000
"""The wall clock was set, if it is this much behind what it was at the last reservation."""


def reserve(transaction: Transaction, name: str, rate_per_s: float, count: int, now_ms: int) -> int:
    """See `Broker.reserve`."""
    start_ms = float(now_ms)
    found = transaction.execute(
        "SELECT rate_per_s, asked_ms, free_ms FROM rate WHERE name = ?", (name,)
    ).fetchone()
    if found is not None:
        before_per_s, asked_ms, free_ms = found
        is_set_back = asked_ms - now_ms >= _SET_BACK_MS_MIN
        ahead_ms = max(0.0, free_ms - (asked_ms if is_set_back else now_ms))
        # What is reserved ahead is so many permits: at another rate they take another time.
        start_ms += ahead_ms * before_per_s / rate_per_s
    transaction.execute(
        "INSERT OR REPLACE INTO rate (name, rate_per_s, asked_ms, free_ms) VALUES (?, ?, ?, ?)",
        (name, rate_per_s, now_ms, start_ms + count * 1000 / rate_per_s),
    )
    return math.ceil(start_ms)


def forget_rate(transaction: Transaction, name: str) -> None:
    """Nobody reserves it any more."""
    transaction.execute("DELETE FROM rate WHERE name = ?", (name,))
