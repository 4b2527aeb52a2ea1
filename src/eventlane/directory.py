"""The lanes of a partition that are not free, as far as memory may hold them.

Usually that is all of them, and a lane that is not in `closed` is free. Where the store has more
than `Limits.parked_lanes_max`, those of which it has everything are forgotten, and a lane that is
neither in `closed` nor known to be free has to be looked up: before a fetched batch is added
(`unknown`, `learn`), and when the first of those that are not known is due (`wants`, `learn_due`).
"""

from collections.abc import Iterator, Sequence

from eventlane.lane import Lane, LaneKey
from eventlane.ledger import Ledger
from eventlane.settlement import Acquired, Batch, LaneState

__all__ = ["Directory"]

_GAPS_MAX = 100
_KNOWN_FREE_MAX = 100_000


class Directory:
    """Finds lanes by their keys."""

    __slots__ = (
        "_all_known",
        "_known_free",
        "_lanes_max",
        "_ledger",
        "closed",
        "gaps",
        "horizon_ms",
    )

    def __init__(self, acquired: Acquired, ledger: Ledger, lanes_max: int) -> None:
        """`ledger` says which lanes changed since the store was written."""
        self._ledger = ledger
        self.closed: dict[LaneKey, Lane | None] = {}
        """Every lane that is not free; None: one event runs and nothing else is to be known."""
        self.gaps: dict[LaneKey, tuple[int, ...]] = {}
        """What lanes passed over, dead or archived."""
        self.horizon_ms: int | None = None
        """From then on lanes that are not known here may be due."""
        self._lanes_max = lanes_max
        self._all_known = not acquired.has_more_lanes
        self._known_free: set[LaneKey] = set()
        for state in acquired.lanes:
            self.know(state)
        # They come in this order: what stops the partition, due, closed, free with gaps.
        last = acquired.lanes[-1] if acquired.has_more_lanes else None
        if last is not None and last.stops:
            self.horizon_ms = 0
        elif last is not None and not last.is_free:
            self.horizon_ms = last.due_ms

    def lane(self, key: LaneKey) -> Lane:
        """The lane of a key, as an object, though it be free or just busy."""
        lane = self.closed.get(key)
        if lane is None:
            busy = key in self.closed
            lane = self.closed[key] = Lane(key)
            lane.running = busy
        return lane

    def is_current(self, lane: Lane) -> bool:
        """Whether a lane is still the one of its key; one that became free is not."""
        return self.closed.get(lane.key) is lane

    def state(self, key: LaneKey) -> LaneState:
        """What is to be stored of a lane."""
        lane, gaps = self.closed.get(key), self.gaps.get(key, ())
        return LaneState(lane=key, gaps=gaps) if lane is None else lane.state(gaps)

    # --- gaps -------------------------------------------------------------------------------

    def note_gap(self, key: LaneKey, offset: int) -> None:
        """An event was passed over."""
        self.gaps[key] = tuple(sorted({*self.gaps.get(key, ()), offset}))[-_GAPS_MAX:]

    def forget_gap(self, key: LaneKey, offset: int) -> bool:
        """It was handled after all; whether it was noted as a gap."""
        gaps = self.gaps.get(key, ())
        if offset not in gaps:
            return False
        self.gaps[key] = tuple(each for each in gaps if each != offset)
        if not self.gaps[key]:
            del self.gaps[key]
        return True

    # --- more lanes than memory may hold ----------------------------------------------------

    def know(self, state: LaneState) -> Lane | None:
        """Take in what is stored of a lane; the lane, unless it is free."""
        key = state.lane
        if state.gaps:
            self.gaps[key] = state.gaps
        if state.is_free:
            return None
        self._known_free.discard(key)
        lane = self.lane(key)
        lane.take_in(state)
        return lane

    def is_unknown(self, key: LaneKey) -> bool:
        """Whether a lane has to be looked up: not if it changed since the store was written."""
        return not (self._all_known or key in self._known_free or self._is_here(key))

    def _is_here(self, key: LaneKey) -> bool:
        """Whether more is known of it than the store says."""
        ledger = self._ledger
        return key in self.closed or key in ledger.changed or key in ledger.writing

    def unknown(self, batch: Batch) -> list[LaneKey]:
        """Lanes of a batch that have to be looked up before it is added."""
        if self._all_known:
            return []
        keys = {record.key for record in batch.records if record.key is not None}
        return [key for key in keys if self.is_unknown(key)]

    def learn(self, asked: Sequence[LaneKey], states: Sequence[LaneState]) -> list[Lane]:
        """What the store says of `asked` lanes; those that are not among `states` are free."""
        if len(self._known_free) > _KNOWN_FREE_MAX:
            self._known_free.clear()
        self._known_free.update(asked)
        return [lane for state in states if (lane := self.know(state)) is not None]

    def learn_due(self, states: Sequence[LaneState], count_max: int) -> list[Lane]:
        """Take in lanes that are due first; fewer than `count_max` are all there are."""
        self.horizon_ms = None if len(states) < count_max else states[-1].due_ms
        new = [state for state in states if not self._is_here(state.lane)]
        return [lane for state in new if (lane := self.know(state)) is not None]

    def wants(self, now_ms: int) -> int:
        """How many lanes that are due first should be looked up; 0 for none."""
        if self.horizon_ms is None or self.horizon_ms > now_ms:
            return 0
        # What is at work here is among the first, as the store has it.
        at_work = len(self.closed) + len(self._ledger.changed) + len(self._ledger.writing)
        return at_work + self._lanes_max

    def forget_idle(self) -> None:
        """Forget lanes of which the store has everything, if there are more than may be held.

        Only while nothing is untaken: what is fetched next is looked up.
        """
        if len(self.closed) > self._lanes_max:
            for lane in list(self._idle()):
                if not lane.blockers:
                    known_ms = lane.due_ms if self.horizon_ms is None else self.horizon_ms
                    self.horizon_ms = min(known_ms, lane.due_ms)
                del self.closed[lane.key]
                self._known_free.discard(lane.key)
                self._all_known = False
        if len(self.gaps) > self._lanes_max:
            kept = self.closed.keys() | self._ledger.changed | self._ledger.writing
            self.gaps = {key: gaps for key, gaps in self.gaps.items() if key in kept}
            self._known_free.clear()
            self._all_known = False

    def _idle(self) -> Iterator[Lane]:
        unwritten = self._ledger.changed | self._ledger.writing
        for key, lane in self.closed.items():
            if lane is not None and lane.is_idle and key not in unwritten:
                yield lane
