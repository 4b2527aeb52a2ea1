"""Looking at one key, or at one event: why it waits, and where it went."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from eventlane.broker import Broker
from eventlane.clock import Clock
from eventlane.config import Limits, number
from eventlane.doctor import examine
from eventlane.errors import ConfigError
from eventlane.event import Key, event_type, key_bytes
from eventlane.subscription import Subscription
from eventlane.topics import Topics
from eventlane.views import Finding, LaneView, Trace

__all__ = ["Inspecting"]


class Inspecting:
    """The part of `App` that answers questions about a key, an event, or all of it."""

    url: str
    name: str
    _options: dict[str, Any]
    _subscriptions: list[Subscription]
    _topics: Topics
    _limits: Limits
    _clock: Clock

    @property
    def _connected(self) -> Broker:
        """The broker.

        Raises:
            Unavailable: The app is not connected.
        """
        raise NotImplementedError

    async def lane(self, topic: str | type[Any], key: Key) -> Sequence[LaneView]:
        """Why a key waits: what its lane is at, in each group that consumes the topic.

        It comes from what is durable, so that it is the same from every process; whether an event
        runs just now it does not say. `why` of each is the answer in a sentence.

        Args:
            topic: Its name, or an event type that is published to it.
            key: As it was published: text, bytes, a number or a UUID.

        Raises:
            NotFound: There is no such topic.
            ConfigError: The key is None: events without a key are no lane together.
            EventRefused: The key is something else that no event can have.
            Unavailable: The app is not connected.
        """
        _refuse_none(key)
        name = topic if isinstance(topic, str) else event_type(topic).topic.name
        return await self._connected.lane(name, key_bytes(key))

    async def trace(self, event_id: UUID, *, with_chain: bool = False, limit: int = 1_000) -> Trace:
        """Where an event lies, what became of it in each group, and what it caused.

        It reads the log from when the event was published to its end, or all of it where the id
        does not say when (that of an event which a handler published); handling goes on meanwhile.

        Args:
            event_id: As `publish` was given it, or `ctx.event_id`.
            with_chain: Also find all that has its correlation id.
            limit: At most so many events that it caused, or that belong to its chain.

        Raises:
            NotFound: The log does not have it, and no group has kept it.
            ConfigError: It is no id, or the limit is no number.
            Unavailable: The app is not connected.
        """
        if not isinstance(event_id, UUID):
            raise ConfigError(f"trace({event_id!r}): expected an event's id, a UUID.")
        number("trace(limit", limit, least=1, whole=True)
        return await self._connected.trace(event_id, with_chain=with_chain, limit=limit)

    async def doctor(self, *, full: bool = False) -> Sequence[Finding]:
        """Check up the broker and what it stands on, and this app against it. Nothing is changed.

        The app need not be connected, and the broker may be in use. A file that is damaged, or of
        another format, is a finding and no error. An app without subscriptions is not checked.

        Args:
            full: Read every page, index and event, and not only the structure of the file. The
                write-ahead log grows meanwhile.

        Raises:
            ConfigError: The URL names no directory with a broker.
        """
        return await asyncio.to_thread(
            partial(
                examine,
                self.url,
                self._subscriptions,
                app=self.name,
                topics=self._topics,
                durability=self._options["durability"],
                limits=self._limits,
                now_ms=self._clock.now_ms(),
                full=full,
            )
        )


def _refuse_none(key: object) -> None:
    if key is None:
        raise ConfigError(
            "key=None: expected a key. Each event without one is a lane of its own: ask for it by "
            "its id, app.trace(event_id)."
        )
