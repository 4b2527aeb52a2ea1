"""What `/metrics` says of the broker: read for a scrape, at most once a second."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from eventlane.account import GroupStatus, Status
from eventlane.clock import Clock, yield_to_loop
from eventlane.health import Answer, Page
from eventlane.metrics import CONTENT_TYPE, Series, text
from eventlane.settlement import Batch

__all__ = ["FRESH_S", "Readable", "answer", "page_of", "read_durable"]

log = logging.getLogger("eventlane.health")

FRESH_S = 1.0
"""What was read so lately is not read again."""
_PATIENCE_S = 4.0

_STATES = (
    *("entered", "done", "waiting", "in_flight", "held", "parked", "dead", "archived"),
    *("skipped", "edited", "lost"),
)


class Readable(Protocol):
    """What is asked of a broker."""

    async def status(self) -> Status:
        """See `Queries.status`."""
        ...

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        """See `Broker.fetch`."""
        ...


async def read_durable(broker: Readable, clock: Clock) -> tuple[Series, ...]:
    """What is durable: the account of each group, how far it lags, and the topics.

    Raises:
        StorageError: The broker cannot be read.
        Unavailable: It is closed.
    """
    status = await broker.status()
    found: list[Series] = []
    begun_ms: dict[tuple[str, int, int], int | None] = {}
    for group, account in status.groups.items():
        found += _of_group(group, account)
        for at in account.partitions:
            place = (at.topic, at.partition, at.watermark)
            if at.open and place not in begun_ms:
                # Groups that lag equally read it once; handlers go on in between.
                await yield_to_loop()
                records = (await broker.fetch(*place, 1)).records
                begun_ms[place] = records[0].time_ms if records else None
            time_ms = begun_ms.get(place) if at.open else None
            age_s = 0.0 if time_ms is None else max(0, clock.now_ms() - time_ms) / 1000
            labels = (group, at.topic, str(at.partition))
            found.append(Series("eventlane_lag_events", labels, (at.open,)))
            found.append(Series("eventlane_lag_seconds", labels, (age_s,)))
    for topic, at_topic in status.topics.items():
        found.append(Series("eventlane_topic_events_total", (topic,), (at_topic.published,)))
        found.append(Series("eventlane_topic_bytes", (topic,), (at_topic.size_bytes,)))
    return tuple(found)


def _of_group(group: str, account: GroupStatus) -> Iterable[Series]:
    for state in _STATES:
        count: int = getattr(account, state)
        yield Series("eventlane_group_events", (group, state), (count,))
    for what, value in (
        ("members", account.members),
        ("absent_seconds", account.absent_s),
        ("paused", account.paused is not None),
        ("blocked", len(account.blocked)),
        ("commands", account.pending),
        ("retained_bytes", account.retained_bytes),
    ):
        yield Series(f"eventlane_group_{what}", (group,), (float(value),))


def answer(series: Iterable[Series]) -> Answer:
    """The page."""
    return Answer(200, text(series).encode(), CONTENT_TYPE)


def page_of(
    gather: Callable[[], Coroutine[Any, Any, Sequence[Series]]],
    loop: Callable[[], asyncio.AbstractEventLoop | None],
    otherwise: Callable[[], Sequence[Series]],
) -> Page:
    """`/metrics`, for a thread of the server.

    `gather` runs in the event loop; `otherwise` says what can be said while that does not turn.
    """

    def page() -> Answer:
        running, coroutine = loop(), gather()
        asked: Future[Sequence[Series]] | None = None
        try:
            if running is not None:
                asked = asyncio.run_coroutine_threadsafe(coroutine, running)
                return answer(asked.result(_PATIENCE_S))
        except (TimeoutError, CancelledError, RuntimeError):
            log.debug("the event loop did not answer a scrape", exc_info=True)
        if asked is None:
            coroutine.close()
        else:
            asked.cancel()
        return answer(otherwise())

    return page
