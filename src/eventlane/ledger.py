"""What the next settlement of a partition will say."""

from collections.abc import Callable, Sequence

from eventlane.failure import Attempts, DeadLetter
from eventlane.handler import Delivery, Origin
from eventlane.lane import LaneKey
from eventlane.message import Record
from eventlane.settlement import LaneState, LetterChange, Settlement, Suspects

__all__ = ["Ledger"]


class Ledger:
    """Collects what became of deliveries, until it is written."""

    __slots__ = (
        "alone",
        "attempts",
        "changed",
        "cleared",
        "commands",
        "dead",
        "done",
        "done_before",
        "letters",
        "parked",
        "pause",
        "published",
        "released",
        "skipped",
        "unparked",
        "urgent",
        "writing",
    )

    def __init__(self) -> None:
        self.done_before = 0
        """Events that were done, up to the settlement before."""
        self.alone: int | None = None
        """The offset of the only event that runs; every settlement says so while it does."""
        self.writing: set[LaneKey] = set()
        """Lanes of which the settlement says something that is being written."""
        self._begin()

    def _begin(self) -> None:
        self.urgent = False
        """It should be written at once."""
        self.done = self.skipped = self.unparked = 0
        self.attempts: dict[int, Attempts] = {}
        self.cleared: list[int] = []
        self.parked: list[tuple[LaneKey, int, Record]] = []
        self.changed: set[LaneKey] = set()
        """Lanes whose stored state is to be replaced."""
        self.dead: list[DeadLetter] = []
        self.letters: list[LetterChange] = []
        self.commands: list[int] = []
        self.released: list[tuple[int, bool]] = []
        self.published: list[tuple[str, Record]] = []
        self.pause: str | None = None

    @property
    def unsettled(self) -> int:
        """Outcomes in it."""
        return self.done + self.skipped + len(self.parked) + len(self.dead)

    @property
    def has_any(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.urgent or self.done or self.skipped)

    def publish(self, delivery: Delivery) -> None:
        """What the handler published goes with its outcome."""
        if delivery.published:
            self.published += delivery.published
            self.urgent = True

    def forget_attempts(self, offset: int) -> None:
        """The attempts of an event are over."""
        self.attempts.pop(offset, None)
        self.cleared.append(offset)

    def settlement(
        self,
        origin: Origin,
        *,
        epoch: int,
        watermark: int,
        settled: Sequence[tuple[int, int]],
        dispatched: int,
        state_of: Callable[[LaneKey], LaneState],
        suspects: Suspects | None,
    ) -> Settlement:
        """All that was collected; it is empty from then on."""
        by_topic: dict[str, list[Record]] = {}
        for topic, record in self.published:
            by_topic.setdefault(topic, []).append(record)
        settlement = Settlement(
            topic=origin.topic,
            partition=origin.partition,
            epoch=epoch,
            watermark=watermark,
            settled=settled,
            dispatched=dispatched,
            done=self.done,
            skipped=self.skipped,
            attempts=list(self.attempts.values()),
            cleared=self.cleared,
            parked=self.parked,
            unparked=self.unparked,
            lanes=[state_of(key) for key in self.changed],
            dead=self.dead,
            letters=self.letters,
            commands=self.commands,
            released=self.released,
            published=list(by_topic.items()),
            pause=self.pause,
            suspects=suspects,
            alone=self.alone,
        )
        self.done_before += self.done
        self.writing = self.changed
        self._begin()
        return settlement
