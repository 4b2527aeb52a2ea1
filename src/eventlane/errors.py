"""Every error that Eventlane raises, split by who can mend it.

EventlaneError
├── ConfigError            you, before anything runs: an option, a signature, a declaration
├── EventRefused           you: this event cannot be published; nothing was written
│   ├── NotSerialisable    ... a field holds what its type does not allow
│   └── TooLarge           ... it exceeds a limit
├── Undecodable            bytes on the log that are not what their type says
├── PublishFailed          the broker took a part; it says which part
│   └── PublishTimeout     ... there was no room in the queue in time
├── Unavailable            a broker cannot be reached, or is closed
├── StorageError           the disk or the file: full, read-only, damaged, locked
│   └── StorageFull        ... a cap of yours is reached: publishing is refused, settling is not
├── Fenced                 another process owns the partition by now; nothing was written
├── Conflict               somebody else changed it first
├── NotFound               there is no such topic, group or dead letter
├── Refused                it exists, but its state does not allow this
├── HandlerStuck           a handler does not end; only the end of the process ends it
└── NotIdle                `run_until_idle` ran out of time; it says what still moves
"""

from collections.abc import Iterator, Sequence
from typing import Literal

__all__ = [
    "ConfigError",
    "Conflict",
    "EventRefused",
    "EventlaneError",
    "Fenced",
    "HandlerStuck",
    "NotFound",
    "NotIdle",
    "NotSerialisable",
    "PublishFailed",
    "PublishTimeout",
    "Refused",
    "StorageError",
    "StorageFull",
    "TooLarge",
    "Unavailable",
    "Undecodable",
]


class EventlaneError(Exception):
    """The root of all errors that Eventlane raises."""


class ConfigError(EventlaneError):
    """A declaration or an option is wrong. Raised before anything runs."""


class EventRefused(EventlaneError):
    """This event cannot be published as it is. Nothing was written."""


class NotSerialisable(EventRefused):
    """A field of the event holds a value that its type does not allow."""


class TooLarge(EventRefused):
    """The serialised event exceeds `Limits.event_bytes_max`."""


class Undecodable(EventlaneError):
    """A message's bytes are not an event of the type that it claims to be."""

    def __init__(
        self, reason: str, *, stage: Literal["decode", "validate"], hint: str = ""
    ) -> None:
        super().__init__(f"{reason}; {hint}" if hint else reason)
        self.reason = reason
        """What is wrong with them. The message also says where to look for who published them."""
        self.stage: Literal["decode", "validate"] = stage
        """`decode`: the bytes are no document at all. `validate`: they are one of another shape."""


class PublishFailed(EventlaneError):
    """A bulk publish ended early. What was acknowledged is durable; the rest was not written."""

    def __init__(self, message: str, *, acknowledged: int, rest: Iterator[object]) -> None:
        super().__init__(message)
        self.acknowledged = acknowledged
        """How many events, counted from the first, are durable."""
        self.rest = rest
        """The events that were not published, the refused chunk first; may be endless. Of an async
        iterable only what was read from it: go on with the iterable itself."""


class PublishTimeout(PublishFailed):
    """The publish queue had no room within `Limits.publish_timeout_s`."""


class Unavailable(EventlaneError):
    """A broker cannot be reached, or was closed."""


class StorageError(EventlaneError):
    """The disk or the file refused: full, read-only, damaged, or locked for too long."""


class StorageFull(StorageError):
    """A topic is at its `size_bytes_max`, or the file at `Limits.disk_bytes_max`.

    Nothing was published. It can be tried again once the groups have gone on.
    """


class Fenced(EventlaneError):
    """A settlement came from a process that no longer owns the partition. Nothing was written."""

    def __init__(self, message: str, *, partitions: Sequence[tuple[str, int]]) -> None:
        super().__init__(message)
        self.partitions = tuple(partitions)
        """The (topic, partition) pairs whose epoch is stale."""


class Conflict(EventlaneError):
    """Somebody else changed this first; the message says who and when."""


class NotFound(EventlaneError):
    """There is no such topic, group, or dead letter."""


class Refused(EventlaneError):
    """It exists, but its present state does not allow this."""


class HandlerStuck(EventlaneError):
    """A handler ignores its cancellation, or runs in a thread that does not end.

    Its lane stays closed and its partition owned until the process exits. `App.run` exits it.
    """


class NotIdle(EventlaneError):
    """`run_until_idle` ran out of time."""

    def __init__(self, message: str, *, status: object) -> None:
        super().__init__(message)
        self.status = status
        """The `Status` at that moment."""
