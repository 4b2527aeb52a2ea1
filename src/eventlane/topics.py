"""The topics of an app: declared by its event types, created when first needed."""

import asyncio
import dataclasses

from eventlane.broker import Broker
from eventlane.errors import ConfigError
from eventlane.topic import DLQ_SUFFIX, DlqTopic, Topic

__all__ = ["Topics"]


class Topics:
    """What an app knows of topics. One per app."""

    def __init__(self, *, partitions: int | None, create: bool) -> None:
        """`partitions` is for topics that do not say; `create=False` only accepts existing ones."""
        if partitions is not None and (isinstance(partitions, bool) or partitions < 1):
            raise ConfigError(f"App(partitions={partitions!r}): expected a number, 1 or more.")
        self._partitions = partitions
        self.creates = create
        self._declared: dict[str, tuple[Topic, str]] = {}
        self.ready: set[str] = set()
        """Names of topics that are known to exist, and that nobody waits for any more."""
        self._found: set[str] = set()
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """Topics that are waited for, and by how many."""

    def declare(self, topic: Topic, declared_at: str) -> None:
        """Take in the settings that an event type declares for its topic.

        Raises:
            ConfigError: Another type declares other settings; both places are named.
        """
        before, where = self._declared.setdefault(topic.name, (topic, declared_at))
        bare = Topic(topic.name)
        if before == bare:
            self._declared[topic.name] = (topic, declared_at)
        elif topic not in (bare, before):
            raise ConfigError(
                f"topic {topic.name!r} has two settings: {before} ({where}) and {topic} "
                f"({declared_at}). State them once, and give only the name elsewhere."
            )

    def forget(self) -> None:
        """Forget which topics exist: it is another broker from now on, or in another state."""
        self.ready.clear()
        self._found.clear()
        self._turns.clear()

    def wanted(self, name: str) -> Topic:
        """A topic with the settings that were declared for it."""
        topic = self._declared[name][0] if name in self._declared else Topic(name)
        if topic.partitions is None and self._partitions is not None:
            topic = dataclasses.replace(topic, partitions=self._partitions)
        return topic

    async def ensure(self, broker: Broker, name: str) -> None:
        """See to it that a topic exists, with the settings that were declared for it.

        Raises:
            ConfigError: It exists with another number of partitions.
            NotFound: It does not exist, and the app does not create topics.
            StorageError: It could not be created.
        """
        if name in self.ready:
            return
        # In the order of the calls: who has waited goes on before who comes now, so that events of
        # a key that were published without waiting for each other keep their order.
        turn, count = self._turns.get(name) or (asyncio.Lock(), 0)
        self._turns[name] = (turn, count + 1)
        try:
            async with turn:
                if name not in self._found:
                    await self._ensure(broker, name)
                    self._found.add(name)
        finally:
            _, count = self._turns.pop(name, (turn, 1))
            if count > 1:
                self._turns[name] = (turn, count - 1)
            elif name in self._found:
                self.ready.add(name)

    async def _ensure(self, broker: Broker, name: str) -> None:
        if name.endswith(DLQ_SUFFIX):
            # What dead letters say of themselves must always have a place: see notice.py.
            source = name.removesuffix(DLQ_SUFFIX).rpartition(".")[0]
            await broker.ensure_topic(DlqTopic(name, partitions=len(await broker.ends(source))))
            return
        topic = self.wanted(name)
        if self.creates:
            await broker.ensure_topic(topic)
        else:
            await broker.ends(name)
