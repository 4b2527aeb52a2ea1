"""What became of a delivery, as a value.

A handler returns one of these, or None, which means `Done`. A handler that raises gets its
outcome from `retry.decide`. No outcome is an exception, and no exception is an outcome.
"""

from dataclasses import dataclass
from typing import Literal

from eventlane.config import checked_options
from eventlane.errors import ConfigError

__all__ = [
    "DELAY_S_MAX",
    "DONE",
    "Dead",
    "Done",
    "LaneOnDead",
    "Outcome",
    "Pause",
    "RetryLater",
    "Skipped",
]

LaneOnDead = Literal["park", "continue", "stop"]
"""What a lane does behind a dead letter: close and park, go on, or stop its partition."""


DELAY_S_MAX = 1e9
"""What a retry may wait at most: some 31 years, which a clock and a calendar can hold."""


@dataclass(frozen=True, slots=True)
class Done:
    """The event was handled."""


@checked_options
@dataclass(frozen=True, slots=True)
class RetryLater:
    """The event is to be handled again, not before `delay_s` seconds from now.

    It counts as an attempt: after `Retry.attempts` of them the event is dead.
    """

    delay_s: float
    reason: str = ""

    def __post_init__(self) -> None:
        number = not isinstance(self.delay_s, bool) and isinstance(self.delay_s, int | float)
        if not number or not 0 <= self.delay_s <= DELAY_S_MAX:
            raise ConfigError(
                f"RetryLater(delay_s={self.delay_s!r}): expected seconds, 0 or more, below 1e9. "
                "A retry cannot start in the past; 0 is at once."
            )
        _check_reason(self.reason)


@checked_options
@dataclass(frozen=True, slots=True)
class Dead:
    """The event becomes a dead letter of its group, at once."""

    reason: str = ""
    lane: LaneOnDead | None = None
    """What the lane does behind it; None: what the group's `on_dead` says."""

    def __post_init__(self) -> None:
        if self.lane not in (None, "park", "continue", "stop"):
            raise ConfigError(
                f"Dead(lane={self.lane!r}): expected 'park', 'continue' or 'stop'. "
                "'park' closes the lane, 'continue' lets it go on, 'stop' halts the partition."
            )
        _check_reason(self.reason)


@checked_options
@dataclass(frozen=True, slots=True)
class Skipped:
    """The event is not for this group; it is counted apart and never retried."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_reason(self.reason)


@checked_options
@dataclass(frozen=True, slots=True)
class Pause:
    """The whole group pauses; the event stays where it is and is not charged an attempt."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_reason(self.reason)


def _check_reason(reason: object) -> None:
    """A reason is stored, so it is text that UTF-8 can carry."""
    if not isinstance(reason, str) or any("\ud800" <= each <= "\udfff" for each in reason):
        raise ConfigError(f"reason={reason!r}: expected text, as in reason='the mail is refused'.")


Outcome = Done | RetryLater | Dead | Skipped | Pause

DONE = Done()
