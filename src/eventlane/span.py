"""The stretch of a partition between its watermark and what was fetched last, and what is settled.

A flag per event says whether it has an outcome. Flags are bytes, so that the watermark and the runs
of settled offsets are found at the speed of C.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence

from eventlane.message import Record
from eventlane.settlement import Batch

__all__ = ["EARLY", "OPEN", "SETTLED", "SUSPECT", "Chunk", "Span", "runs_of"]

OPEN, SETTLED, EARLY, SUSPECT = 0, 1, 2, 3
"""An event's flag; EARLY: taken ahead of its turn (a stored retry), no outcome; SUSPECT: not taken,
and it may have killed its process."""

_SETTLED_RUN = re.compile(b"\x01+")


def runs_of(ends_of: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Offsets with a number each, as [start, stop) runs of one number."""
    runs: list[tuple[int, int, int]] = []
    for offset in sorted(ends_of):
        ends = ends_of[offset]
        if runs and runs[-1][1] == offset and runs[-1][2] == ends:
            runs[-1] = (runs[-1][0], offset + 1, ends)
        else:
            runs.append((offset, offset + 1, ends))
    return runs


class Chunk:
    """What was fetched at once."""

    __slots__ = ("first", "flags", "next", "offsets", "records")

    def __init__(self, batch: Batch) -> None:
        self.offsets: Sequence[int] = batch.offsets
        self.records: Sequence[Record] = batch.records
        self.first = batch.offsets[0] if isinstance(batch.offsets, range) else None
        """The first offset where there are no gaps: adding is faster than looking up."""
        self.flags = bytearray(len(batch.records))
        self.next = 0
        """Index of the first event that was not taken yet."""

    def first_open(self) -> int:
        """Index of the first event without an outcome; -1 if all have one."""
        places = [at for flag in (OPEN, EARLY, SUSPECT) if (at := self.flags.find(flag)) >= 0]
        return min(places, default=-1)


class Span:
    """What is between the watermark and the last fetch."""

    def __init__(self, watermark: int, settled: Sequence[tuple[int, int]]) -> None:
        """`settled` are the offsets above the watermark with an outcome, as [start, stop) runs."""
        self.first = watermark
        """The watermark at the beginning: what was parked before lies below."""
        self.next_offset = watermark
        """Where the next fetch starts."""
        self.untaken: deque[Chunk] = deque()
        """Chunks with events that nobody took, in order."""
        self._chunks: deque[Chunk] = deque()
        self._settled_before = settled

    def add(self, batch: Batch) -> Chunk:
        """Take in what was fetched from `next_offset` on."""
        chunk = Chunk(batch)
        self.next_offset = batch.offsets[-1] + 1
        self._chunks.append(chunk)
        self.untaken.append(chunk)
        if self._settled_before and self._settled_before[-1][1] > batch.offsets[0]:
            for start, stop in self._settled_before:
                first = bisect_left(chunk.offsets, start)
                after = bisect_left(chunk.offsets, stop)
                chunk.flags[first:after] = bytes([SETTLED]) * (after - first)
        return chunk

    @property
    def watermark(self) -> int:
        """The lowest offset without an outcome."""
        for chunk in self._chunks:
            index = chunk.first_open()
            if index >= 0:
                return chunk.offsets[index]
        return self.next_offset

    @property
    def next_untaken(self) -> int:
        """The lowest offset that nobody took."""
        for chunk in self.untaken:
            if chunk.next < len(chunk.offsets):
                return chunk.offsets[chunk.next]
        return self.next_offset

    def drop_settled(self) -> int:
        """Forget chunks that are over; return the watermark."""
        while self._chunks:
            chunk = self._chunks[0]
            if chunk.first_open() >= 0 or chunk.next < len(chunk.records):
                break
            self._chunks.popleft()
        return self.watermark

    def settled_runs(self, watermark: int) -> list[tuple[int, int]]:
        """What has an outcome above the watermark, as [start, stop) runs."""
        runs: list[tuple[int, int]] = []
        for chunk in self._chunks:
            for run in _SETTLED_RUN.finditer(chunk.flags):
                start, stop = chunk.offsets[run.start()], chunk.offsets[run.end() - 1] + 1
                if stop > watermark:
                    runs.append((start, stop))
        for start, stop in self._settled_before:
            # What a former owner settled, and this one has not fetched yet: without it the next
            # settlement would take the outcomes back.
            if stop > self.next_offset:
                runs.append((max(start, self.next_offset), stop))
        return runs
