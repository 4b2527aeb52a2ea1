"""Which events may have killed their process: they run alone, so that only the culprit is charged.

After an unclean end everything that can have been in flight is suspected: see `Acquired.suspects`.
In flight at one unclean end is nothing: it runs as ever. At two: it runs alone in its group. If the
process dies then: alone in its process. Only a death while it ran alone in its process is charged
to it, and `Limits.crashes_max` of these make it a dead letter. So a bystander is never charged,
however often it was near.
"""

from eventlane.settlement import Suspects as Runs
from eventlane.span import runs_of

__all__ = ["AHEAD_MIN", "ALONE_IN_GROUP", "ALONE_IN_PROCESS", "LANES_AT_WORK_MAX", "Suspects"]

ALONE_IN_GROUP, ALONE_IN_PROCESS = 2, 3
"""From so many unclean ends on."""
AHEAD_MIN = 100
"""So many events may be taken, at least, before a settlement says how far more may be."""
LANES_AT_WORK_MAX = 1_000
"""Of so many lanes of a partition parked events run at once, or have run and are not settled."""


class Suspects:
    """The suspected events of one partition."""

    __slots__ = ("_changed", "_ended", "_ends", "_kept")

    def __init__(self, runs: Runs, watermark: int) -> None:
        """What lies below the watermark is parked or replayed."""
        self._ends = {offset: ends for start, stop, ends in runs for offset in range(start, stop)}
        self._kept = {offset for offset in self._ends if offset < watermark}
        self._changed = False
        self._ended = 0

    def __bool__(self) -> bool:
        return bool(self._ends)

    def ends(self, offset: int) -> int:
        """At how many unclean ends an event was in flight."""
        return self._ends.get(offset, 0)

    def crashes(self, offset: int) -> int:
        """How many processes died while it ran alone in them."""
        return max(0, self.ends(offset) - ALONE_IN_PROCESS)

    def keep(self, offset: int) -> None:
        """It is parked: it stays suspected below the watermark."""
        if offset in self._ends:
            self._kept.add(offset)

    def clear(self, offset: int) -> None:
        """It has an outcome."""
        if self._ends.pop(offset, None) is not None:
            self._kept.discard(offset)
            self._changed = True
            self._ended += 1

    def left(self, watermark: int) -> list[tuple[int, int, int]] | None:
        """Those without an outcome, to be written; None if nothing has changed."""
        passed = [each for each in self._ends if each < watermark and each not in self._kept]
        for offset in passed:
            del self._ends[offset]
        self._ended += len(passed)
        if not passed and not self._changed:
            return None
        self._changed = False
        return runs_of(self._ends)

    def count_ended(self) -> int:
        """How many have got an outcome since the last call."""
        ended, self._ended = self._ended, 0
        return ended
