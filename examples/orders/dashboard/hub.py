"""Who reads the source, and when: as rarely as possible, and not at all when nobody watches."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime

from .fragments import Reading
from .snapshot import DashboardSource, Snapshot, SourceUnavailable

__all__ = ["UPDATE_INTERVAL_S", "Hub"]

UPDATE_INTERVAL_S = 0.5
"""At most two updates a second: more is not read, only repainted."""
READING_FRESH_S = 0.4


class Hub:
    """Shares one reading between all pages, and feeds their streams until it is closed."""

    def __init__(self, source: DashboardSource) -> None:
        self._source = source
        self._reading = Reading(Snapshot(as_of=datetime.now(UTC)), "No figures have been read yet.")
        self._read_at_s = float("-inf")
        self._turn = asyncio.Lock()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End all streams: each says goodbye to its page, which keeps the last figures."""
        self._closed.set()

    async def reading(self) -> Reading:
        """The shared reading, a moment old at most; one call of the source however many ask."""
        async with self._turn:
            if time.monotonic() - self._read_at_s < READING_FRESH_S:
                return self._reading
            try:
                self._reading = Reading(await self._source.snapshot())
            except SourceUnavailable as problem:
                self._reading = Reading(self._reading.snapshot, str(problem))
            self._read_at_s = time.monotonic()
            return self._reading

    def expire(self) -> None:
        """The next reading is a new one: something was just changed on purpose."""
        self._read_at_s = float("-inf")

    async def stream(self, render: Callable[[Reading], Mapping[str, str]]) -> AsyncIterator[str]:
        """Server-sent events: the fragments that `render` makes, where they are new.

        Cancellation: A browser that goes away cancels the stream; nothing is left behind.
        """
        yield "retry: 1000\n\n"
        sent: dict[str, str] = {}
        rendered_from: Reading | None = None
        while not self._closed.is_set():
            reading = await self.reading()
            if reading is not rendered_from:
                fragments = render(reading)
                for name, html in fragments.items():
                    if sent.get(name) != html:
                        yield server_sent_event(name, html)
                sent.update(fragments)
                rendered_from = reading
                yield server_sent_event("beat", f"{reading.snapshot.as_of:%H:%M:%S} UTC")
            try:
                await asyncio.wait_for(self._closed.wait(), UPDATE_INTERVAL_S)
            except TimeoutError:
                continue
        yield server_sent_event("bye", "")


def server_sent_event(name: str, text: str) -> str:
    """One event of the stream; a line break in the text becomes a further `data:` line."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}\n"
