"""Writing down what became of deliveries: one settlement at a time, which takes all there is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from eventlane.broker import Consumer
from eventlane.clock import Clock, Timer, loop_time, sleep
from eventlane.config import Limits
from eventlane.errors import Fenced, StorageError
from eventlane.lanes import Lanes
from eventlane.settlement import Settlement
from eventlane.telemetry import Telemetry

__all__ = ["Settler"]

log = logging.getLogger("eventlane.settle")

_TRY_AGAIN_S = (0.05, 2.0)


class Settler:
    """Settles for one group in this process, and keeps the time of its retries.

    A settlement starts at once if a lane waits for it (a failed attempt, a park, a dead letter), if
    something published hangs on it, or if `Limits.settle_events_max` outcomes have accumulated;
    else after `Limits.settle_interval_s`. A settlement per few events could not feed several
    groups: the file takes some thousand commits a second in all.
    """

    def __init__(
        self,
        group: str,
        consumer: Consumer,
        partitions: Mapping[tuple[str, int], Lanes],
        *,
        ensure_topic: Callable[[str], Awaitable[None]],
        telemetry: Telemetry,
        clock: Clock,
        limits: Limits,
        lost: Callable[[str, int], None],
        settled: Callable[[], None],
    ) -> None:
        """`lost` is told of partitions that another process owns; `settled` follows every write."""
        self.timer: asyncio.TimerHandle | None = None
        """Set while outcomes wait for their settlement."""
        self.is_writing = False
        self.has_noted = True
        """Something was, so that a partition may hold other events, or be blocked."""
        self.refused: StorageError | None = None
        """Why outcomes could not be written last, while it is tried again."""
        self._group = group
        self._consumer = consumer
        self._partitions = partitions
        self._ensure_topic = ensure_topic
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits
        self._lost = lost
        self._settled = settled
        self._loop, self._monotonic = asyncio.get_running_loop(), loop_time()
        self._now = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._written = asyncio.Event()
        self._due_timer: Timer | None = None
        self._due_ms = 0
        self._is_broken = False

    def note(self, lanes: Lanes) -> None:
        """See to it that the outcomes of a partition are written, and its retries woken."""
        self.has_noted = True
        if lanes.ledger.urgent or lanes.ledger.unsettled >= self._limits.settle_events_max:
            self._now.set()
        elif self.timer is None and lanes.ledger.unsettled:
            self.timer = self._loop.call_later(self._limits.settle_interval_s, self._now.set)
        due_ms = lanes.next_due_ms
        if due_ms is not None and (self._due_timer is None or due_ms < self._due_ms):
            if self._due_timer is not None:
                self._due_timer.cancel()
            self._due_ms = due_ms
            delay_s = max(0, due_ms - self._clock.now_ms()) / 1000
            self._due_timer = self._clock.call_later(delay_s, self._due)

    async def catch_up(self) -> None:
        """Wait while more outcomes than `Limits.settle_events_max` are not written."""
        unsettled = sum(lanes.ledger.unsettled for lanes in self._partitions.values())
        if unsettled >= self._limits.settle_events_max:
            self._now.set()
            if self.is_writing:
                self._written.clear()
                await self._written.wait()

    async def run(self) -> None:
        """Write settlements until cancelled."""
        while True:
            await self._now.wait()
            await self._settle_once()

    async def flush(self) -> None:
        """Write all that has become of deliveries until now, also if this is cancelled."""
        await asyncio.shield(self._settle_once())

    async def finish(self, *, within_s: float) -> None:
        """Write what is left; to be called when nothing runs any more."""
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._telemetry.sum_up()
        try:
            async with asyncio.timeout(within_s):
                await self._finish()
        except TimeoutError:
            log.warning(
                "group %s: what was handled last could not be written within drain_s=%s; those "
                "events will be handled again",
                self._group,
                within_s,
            )

    async def _finish(self) -> None:
        while not self._is_broken and (
            self.is_writing
            or any(
                lanes.ledger.urgent or lanes.ledger.unsettled for lanes in self._partitions.values()
            )
        ):
            await self._settle_once()

    async def _settle_once(self) -> None:
        async with self._one_at_a_time:
            await self._settle_all()

    async def _settle_all(self) -> None:
        if self._is_broken:
            return
        self._now.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        collected = [
            (lanes, settlement)
            for lanes in self._partitions.values()
            if (settlement := lanes.collect()) is not None
        ]
        self.is_writing = True
        try:
            await self._write(collected)
        except BaseException:
            # What was collected is gone, and a later settlement would pass over it: its events
            # are handled again by whoever owns the partition next.
            self._is_broken = True
            raise
        finally:
            self.is_writing = False
            self._written.set()
        for lanes, _ in collected:
            lanes.wake(self._clock.now_ms())
            self.note(lanes)
        self._settled()

    async def _write(self, collected: list[tuple[Lanes, Settlement]]) -> None:
        """Write until it is written; what another process owns by now is dropped."""
        delay_s, delay_s_max = _TRY_AGAIN_S
        started_s = self._monotonic()
        while collected:
            try:
                for _, settlement in collected:
                    for topic, _ in settlement.published:
                        await self._ensure_topic(topic)
                await self._consumer.settle([settlement for _, settlement in collected])
            except Fenced as error:
                self.refused = None
                for lanes, _ in collected:
                    place = (lanes.origin.topic, lanes.origin.partition)
                    # Not what was acquired anew while this waited to be written.
                    if place in error.partitions and self._partitions.get(place) is lanes:
                        self._lost(*place)
                collected[:] = [
                    (lanes, settlement)
                    for lanes, settlement in collected
                    if (lanes.origin.topic, lanes.origin.partition) not in error.partitions
                ]
            except StorageError as error:
                # Outcomes wait in memory: nothing is lost, and no lane goes on that must not.
                self.refused = error
                log.warning(
                    "group %s cannot settle, trying again: %s",
                    *(self._group, error),
                    extra={"kind": "settling_refused", "group": self._group, "reason": str(error)},
                )
                await sleep(delay_s)
                delay_s = min(delay_s * 2, delay_s_max)
            else:
                self.refused = None
                for lanes, _ in collected:
                    lanes.committed()
                self._telemetry.settled(collected, self._monotonic() - started_s)
                return

    def _due(self) -> None:
        self._due_timer = None
        now_ms = self._clock.now_ms()
        for lanes in self._partitions.values():
            lanes.wake(now_ms)
            self.note(lanes)
        self._settled()
