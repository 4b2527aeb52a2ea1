"""What a topic is: a name, and the settings that its declaration asks for."""

import math
import re
from dataclasses import KW_ONLY, dataclass

from eventlane.config import checked_options
from eventlane.errors import ConfigError

__all__ = ["DLQ_SUFFIX", "DlqTopic", "Topic"]

DLQ_SUFFIX = ".dlq"
"""Of the topics on which dead letters say of themselves: see notice.py."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


@checked_options
@dataclass(frozen=True)
class Topic:
    """A topic and the settings that it shall have. What is None, the broker decides.

    `partitions` holds when the topic is created; `retention_s` and `retention_bytes` (of the whole
    topic) say how long its messages are kept: never less than the slowest group needs.
    `size_bytes_max` is hard. At that size the oldest messages are removed; those that only groups
    without a process for `Limits.absent_s` have not handled are lost to these. Where a group that
    has a process still needs them, publishing to the topic is refused.

    Raises:
        ConfigError: the name or a number is out of bounds.
    """

    name: str
    _: KW_ONLY
    partitions: int | None = None
    retention_s: float | None = None
    retention_bytes: int | None = None
    size_bytes_max: int | None = None

    def __post_init__(self) -> None:
        name = self.name
        # Kafka refuses the two names of dots, and a file system gives them another meaning.
        if type(name) is not str or not _NAME.fullmatch(name) or name in (".", ".."):
            raise ConfigError(
                f"Topic name: expected 1 to 200 characters of A-Z a-z 0-9 . _ -, got {name!r}; "
                "choose such a name"
            )
        if name.endswith(DLQ_SUFFIX) and not isinstance(self, DlqTopic):
            raise ConfigError(
                f"Topic name: expected a name that does not end in '.dlq', got {name!r}; "
                "Eventlane keeps these for dead letters, choose another"
            )
        for option in ("partitions", "retention_bytes", "size_bytes_max"):
            self._refuse_unless_positive(option, "an int of at least 1", int)
        self._refuse_unless_positive("retention_s", "a positive number of seconds", int, float)
        if (self.retention_bytes or 0) > (self.size_bytes_max or math.inf):
            raise ConfigError(
                f"Topic {self.name!r}: expected retention_bytes of at most size_bytes_max="
                f"{self.size_bytes_max}, got {self.retention_bytes}; what is kept is never more"
            )

    def _refuse_unless_positive(self, option: str, expected: str, *kinds: type) -> None:
        number = getattr(self, option)
        # The exact type, because True is an int.
        if number is not None and not (type(number) in kinds and 0 < number < math.inf):
            raise ConfigError(
                f"Topic {self.name!r}: expected {option} to be {expected}, got {number!r}; leave "
                "it out for the broker's default"
            )


class DlqTopic(Topic):
    """A topic for dead letters of a group: only Eventlane makes one, and writes to it."""
