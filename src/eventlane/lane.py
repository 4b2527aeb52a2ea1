"""A lane that is not free, and the deliveries that wait in it."""

from collections import deque
from dataclasses import dataclass, field

from eventlane.handler import Delivery
from eventlane.settlement import LaneState

__all__ = ["Lane", "LaneKey"]

LaneKey = bytes | int
"""What a lane is found by: its key; an offset where an event is a lane of its own; -1 where a
partition is one lane."""


@dataclass(slots=True, eq=False)
class Lane:
    """A lane that is not free. Its events run in this order: replays, what is parked, the queue."""

    key: LaneKey
    running: bool = False
    """One of its events runs, or what became of it is not durable yet."""
    replays: list[Delivery] = field(default_factory=list)
    """Dead letters that operators have replayed, the earliest first."""
    blockers: tuple[int, ...] = ()
    """Offsets of the dead letters that close it."""
    stops: bool = False
    """One of them stops the partition."""
    parked: int = 0
    """Events in the parking store, `drained` ones included."""
    head: int = 0
    """No parked event has a lower offset."""
    due_ms: int = 0
    """When the first parked event may be read back."""
    unsaved: int = 0
    """Parked events that are not durable yet."""
    loading: bool = False
    read_to: int = -1
    """Offset of the parked event that was read back last."""
    drained: list[Delivery] = field(default_factory=list)
    """Parked events that were read back, the earliest first."""
    queue: deque[Delivery] = field(default_factory=deque)
    """Events of the log that wait in memory."""
    operation: int | None = None
    """The replay that released what is parked."""
    failed_in: int | None = None
    """The operation in which a replay of it died again."""

    def take_in(self, state: LaneState) -> None:
        """Take over what is stored of it."""
        self.parked, self.head, self.read_to = state.parked, state.head, state.head - 1
        self.due_ms = state.due_ms or 0
        self.blockers, self.stops = state.blockers, state.stops
        self.operation = state.operation

    def state(self, gaps: tuple[int, ...]) -> LaneState:
        """What is to be stored of it."""
        trouble = self.drained[0].trouble if self.drained else None
        due_ms = self.due_ms if trouble is None else trouble.due_ms
        return LaneState(
            lane=self.key,
            parked=self.parked,
            head=self.head,
            due_ms=None if self.blockers else due_ms,
            blockers=self.blockers,
            stops=self.stops,
            gaps=gaps,
            operation=self.operation,
        )

    @property
    def line(self) -> "list[Delivery] | deque[Delivery] | None":
        """Where its next event waits, in memory; None if it is in the store, or has to wait."""
        if self.replays:
            return self.replays
        if self.blockers:
            return None
        if self.drained:
            return self.drained
        return None if self.parked else self.queue

    def line_of(self, delivery: Delivery) -> "list[Delivery] | deque[Delivery]":
        """The line from which a delivery came."""
        if delivery.trouble is not None and delivery.trouble.letter is not None:
            return self.replays
        return self.drained if delivery.chunk is None else self.queue

    @property
    def is_idle(self) -> bool:
        """Nothing of it is in memory that the store does not have."""
        return not (
            self.running
            or self.loading
            or self.unsaved
            or self.replays
            or self.drained
            or self.queue
            or self.stops
        )

    @property
    def holds(self) -> bool:
        """Its first event waits in memory for its retry, and nothing is parked."""
        return bool(
            self.queue
            and self.queue[0].trouble is not None
            and not (self.running or self.replays or self.blockers or self.parked)
        )

    def waits_at(self, below: int) -> bool:
        """Whether its first event waits in memory, is of the log, and has a lower offset."""
        if self.running or self.line is not self.queue or not self.queue:
            return False
        return self.queue[0].offset < below

    def park_in(self, offset: int) -> None:
        """One more of its events goes to the parking store."""
        if not self.parked:
            self.head, self.read_to = offset, offset - 1
        self.parked += 1
        self.unsaved += 1

    def unload(self) -> None:
        """Forget what was read back: it is read again when it is due."""
        self.drained.clear()
        self.read_to = self.head - 1
