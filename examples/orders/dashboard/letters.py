"""The open dead letters by kind, kept up to date by reading only those that are new."""

import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from eventlane import App, DeadLetter, Message, Undecodable
from examples.orders.events import OrderCreated

from .snapshot import Kind, Letter

__all__ = ["OpenLetters"]

PAGE = 1000
LATEST_KEPT = 50
RECOUNT_SHARE = 0.05
"""Counting all letters again may take this share of the time."""


class OpenLetters:
    """Reads dead letters in the order in which they died; again when some are no longer open."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._last: UUID | None = None
        self._counts: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        # Of each kind's latest letters, where reading has to begin so that it is the first to come.
        self._begins: dict[str, deque[UUID | None]] = {}
        self._recount_at_s = 0.0

    async def kinds(self, dead: int) -> tuple[Kind, ...]:
        """The kinds, the most frequent first.

        Args:
            dead: How many are open by the accounts of all groups.
        """
        if dead != self._counts.total():
            await self._read_on()
        if dead != self._counts.total() and time.monotonic() >= self._recount_at_s:
            began_s = time.monotonic()
            self._last = None
            self._counts, self._messages, self._begins = Counter(), {}, {}
            await self._read_on()
            ended_s = time.monotonic()
            self._recount_at_s = ended_s + (ended_s - began_s) / RECOUNT_SHARE
        return tuple(
            Kind(name=name, count=count, last_message=self._messages[name])
            for name, count in self._counts.most_common()
        )

    async def latest(self, kind: str, *, limit: int) -> Sequence[Letter]:
        """The latest letters of one kind as they are now, the newest first."""
        begins = self._begins.get(kind)
        if not begins:
            return ()
        found: deque[Letter] = deque(maxlen=limit)
        async for letter in self._letters_after(begins[0]):
            if letter.error_class == kind:
                found.append(self._shown(letter))
        return tuple(reversed(found))

    async def _read_on(self) -> None:
        async for letter in self._letters_after(self._last):
            kind = letter.error_class
            self._counts[kind] += 1
            self._messages[kind] = letter.error_message
            self._begins.setdefault(kind, deque(maxlen=LATEST_KEPT)).append(self._last)
            self._last = letter.id

    async def _letters_after(self, after: UUID | None) -> AsyncIterator[DeadLetter]:
        while True:
            page = await self._app.dead_letters(state="open", limit=PAGE, after=after)
            for letter in page:
                yield letter
            if len(page) < PAGE:
                return
            after = page[-1].id

    def _shown(self, letter: DeadLetter) -> Letter:
        message = Message(letter.topic, letter.partition, letter.offset, letter.record)
        try:
            order_id = str(self._app.decode(message, OrderCreated).order_id)
        except Undecodable:
            order_id = "unreadable"
        return Letter(
            id=str(letter.id),
            household=(letter.key or b"").decode("utf-8", "replace"),
            order_id=order_id,
            attempts=letter.attempts,
            message=letter.error_message,
            failed_at=letter.last_failed_at,
            parked_behind=letter.parked_followers,
            state=letter.state,
        )
