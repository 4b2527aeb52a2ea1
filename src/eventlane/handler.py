"""What handles an event: a function, what it is told, and what may stand around it.

    Handler    = Context -> Outcome
    Middleware = Handler -> Handler

A delivery (an event for one group) is one object, a `Context`, from the moment that it is taken
from the log until it is settled. So a handler's `ctx`, a middleware's argument and what waits in a
lane are the same thing, and the hot loop makes one object per event.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal
from uuid import UUID

import msgspec

from eventlane.config import checked_options, number
from eventlane.errors import ConfigError
from eventlane.event import Key
from eventlane.failure import Attempts, DeadLetter
from eventlane.message import (
    CAUSATION_ID,
    CORRELATION_ID,
    Message,
    Record,
    derived_id,
    headers_of,
)
from eventlane.outcome import Outcome

__all__ = [
    "Batch",
    "Context",
    "Delivery",
    "Handler",
    "Middleware",
    "Origin",
    "Serialise",
    "Trouble",
    "compose",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    State = TypeVar("State", default=Any)  # PEP 696, in `typing` from Python 3.13 on
else:
    from typing import TypeVar

    State = TypeVar("State")

Serialise = Callable[..., tuple[str, Record]]
"""(event, key, topic, headers, event_id) -> (topic, record): see `serde.outgoing`."""


class Origin(msgspec.Struct):
    """What all deliveries of one partition to one group have in common."""

    topic: str
    partition: int
    group: str
    state: Any
    """What the app's lifespan yielded."""
    serialise: Serialise
    lanes: Any = None
    """The `Lanes` that schedules them."""
    routes: Any = None
    """For each header block that was seen, what handles such an event: see `routing.py`."""
    handler_of: Callable[[bytes], str] = str
    """The name of the handler for a header block."""


class Trouble(msgspec.Struct):
    """What a delivery carries once it has failed, or is replayed."""

    attempts: Attempts | None = None
    """What is stored of its failed attempts."""
    letter: DeadLetter | None = None
    """The dead letter that this delivery replays."""
    command: int | None = None
    """The operator's command that asked for the replay."""
    operation: int | None = None
    """... and the operation of which that is a part."""
    late: bool = False
    not_before_ms: int = 0
    """For a run that was not charged: when it may be tried again."""
    uncharged: int = 0
    """How many such runs there were."""
    ends: int = 0
    """At so many unclean ends of a process it was in flight; from 2 on it runs alone."""

    @property
    def due_ms(self) -> int:
        """Not before this wall time."""
        if self.attempts is None:
            return self.not_before_ms
        return max(self.attempts.due_ms, self.not_before_ms)


class Context(msgspec.Struct, Generic[State], gc=False):
    """What a handler knows of the delivery that it handles. Valid while the handler runs."""

    # Not looked after by the cycle collector, which saves 27 of some 900 ns for an event. What it
    # refers to does refer back while it waits: see `Schedule.forget`.

    origin: Origin
    lane: bytes | int
    """What its lane is found by: its key; its offset where it has none; -1 for a partition."""
    offset: int
    record: Record
    chunk: Any = None
    index: int = 0
    attempt: int = 1
    """1 for the first run; counts every run that failed, over restarts too."""
    event: Any = None
    """The decoded event; None for a tombstone. For middleware: a handler is given it."""
    published: list[tuple[str, Record]] | None = None
    trouble: Trouble | None = None

    @property
    def message(self) -> Message:
        """The message: topic, partition, offset, key, headers, time."""
        return Message(self.origin.topic, self.origin.partition, self.offset, self.record)

    @property
    def group(self) -> str:
        """The group that handles it."""
        return self.origin.group

    @property
    def handler(self) -> str:
        """The name of the function that handles it."""
        return self.origin.handler_of(self.record.headers)

    @property
    def event_id(self) -> UUID:
        """The event's id, the same in every attempt and group: the key of a processed mark."""
        return UUID(bytes=self.record.id)

    @property
    def correlation_id(self) -> str:
        """What it belongs to: the id of the first event of its chain, unless the sender set one."""
        value = headers_of(self.record.headers).get(CORRELATION_ID)
        return str(self.event_id) if value is None else value.decode("utf-8", "replace")

    @property
    def causation_id(self) -> str | None:
        """The id of the event whose handler published this one."""
        value = headers_of(self.record.headers).get(CAUSATION_ID)
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def replayed(self) -> bool:
        """This is a run of a dead letter that an operator replays."""
        return self.trouble is not None and self.trouble.letter is not None

    @property
    def late(self) -> bool:
        """It runs after later events of its lane: a replay of a letter that let its lane go on."""
        return self.trouble is not None and self.trouble.late

    @property
    def gaps(self) -> tuple[int, ...]:
        """Offsets of earlier events of its lane that were passed over, dead or archived.

        The last hundred at most, ascending; empty is the rule.
        """
        passed: tuple[int, ...] = self.origin.lanes.directory.gaps.get(self.lane, ())
        return tuple(offset for offset in passed if offset < self.offset)

    @property
    def state(self) -> State:
        """What the app's `lifespan` yielded."""
        state: State = self.origin.state
        return state

    def publish(
        self,
        event: object,
        *,
        key: Key | None = None,
        topic: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> UUID:
        """Publish an event together with this delivery's outcome.

        It is buffered, never visible before the handler returned, and dropped if the handler
        raises or returns `RetryLater`, `Dead` or `Pause`. Its id is derived from this delivery and
        from what is published, so that a second run publishes the same event under the same id.

        Returns:
            The id of the new event.

        Raises:
            EventRefused: The event cannot be published; nothing was buffered.
            ConfigError: Its type was not declared with `@event`.

        Durability:
            On the embedded broker in the same transaction as the outcome: both or neither.
        """
        if self.published is None:
            self.published = []
        of_chain = {CORRELATION_ID: self.correlation_id, CAUSATION_ID: str(self.event_id)}
        target, record = self.origin.serialise(
            event, key, topic, {**of_chain, **(headers or {})}, None
        )
        origin = self.origin
        new_id = derived_id(
            origin.topic,
            origin.partition,
            self.offset,
            origin.group,
            self.handler,
            len(self.published),
            record.value,
        )
        self.published.append((target, msgspec.structs.replace(record, id=new_id.bytes)))
        return new_id


Delivery = Context[Any]
"""An event for one group, from being taken until it is settled."""

Handler = Callable[[Delivery], Awaitable[Outcome | None]]
"""Handles one delivery. None is `Done`."""

Middleware = Callable[[Handler], Handler]
"""Wraps a handler; exceptions pass through it, only the dispatcher catches them."""


def compose(middleware: Sequence[Middleware], handler: Handler) -> Handler:
    """Put middleware around a handler; the first is the outermost."""
    for layer in reversed(middleware):
        handler = layer(handler)
    return handler


@checked_options
@dataclass(frozen=True, slots=True)
class Batch:
    """Hand a handler several events at once, in a list.

    With `lanes="apart"` a list has at most one event of each lane, so that one that fails never
    lets a later one of its lane run. With `lanes="together"` it may have several, in their order:
    if one fails, the later ones of its lane in the list are handled again after it, done or not.
    """

    size: int
    """Events in a list, at most."""
    linger_s: float = 0.0
    """How long the first event of a list may wait for more."""
    lanes: Literal["apart", "together"] = "apart"

    def __post_init__(self) -> None:
        number("Batch(size", self.size, least=1, whole=True)
        number("Batch(linger_s", self.linger_s, least=0)
        if self.lanes not in ("apart", "together"):
            raise ConfigError(f"Batch(lanes={self.lanes!r}): expected 'apart' or 'together'.")
