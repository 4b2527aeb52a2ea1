"""What became of a delivery, as a value.

A handler returns one of these, or None, which means `Done`. A handler that raises gets its
outcome from `retry.decide`. No outcome is an exception, and no exception is an outcome.
"""

from typing import Literal

import msgspec

from eventlane.errors import ConfigError

__all__ = ["DONE", "Dead", "Done", "LaneOnDead", "Outcome", "Pause", "RetryLater", "Skipped"]

LaneOnDead = Literal["park", "continue", "stop"]
"""What a lane does behind a dead letter: close and park, go on, or stop its partition."""


class Done(msgspec.Struct, frozen=True):
    """The event was handled."""


class RetryLater(msgspec.Struct, frozen=True):
    """The event is to be handled again, not before `delay_s` seconds from now.

    It counts as an attempt: after `Retry.attempts` of them the event is dead.
    """

    delay_s: float
    reason: str = ""

    def __post_init__(self) -> None:
        if (
            isinstance(self.delay_s, bool)
            or not isinstance(self.delay_s, int | float)
            or not (self.delay_s >= 0)
        ):
            raise ConfigError(
                f"RetryLater(delay_s={self.delay_s!r}): expected seconds, 0 or more. "
                "A retry cannot start in the past; 0 is at once."
            )


class Dead(msgspec.Struct, frozen=True):
    """The event becomes a dead letter of its group, at once."""

    reason: str = ""
    lane: LaneOnDead | None = msgspec.field(default=None)
    """What the lane does behind it; None: what the group's `on_dead` says."""

    def __post_init__(self) -> None:
        if self.lane not in (None, "park", "continue", "stop"):
            raise ConfigError(
                f"Dead(lane={self.lane!r}): expected 'park', 'continue' or 'stop'. "
                "'park' closes the lane, 'continue' lets it go on, 'stop' halts the partition."
            )


class Skipped(msgspec.Struct, frozen=True):
    """The event is not for this group; it is counted apart and never retried."""

    reason: str = ""


class Pause(msgspec.Struct, frozen=True):
    """The whole group pauses; the event stays where it is and is not charged an attempt."""

    reason: str = ""


Outcome = Done | RetryLater | Dead | Skipped | Pause

DONE = Done()
