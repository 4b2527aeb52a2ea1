"""What a process knows of its own health: gathered by its event loop, read by any thread."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from eventlane.broker import Broker
from eventlane.clock import Clock, SystemClock, sleep
from eventlane.config import Limits
from eventlane.dispatch import Dispatcher
from eventlane.errors import EventlaneError
from eventlane.health import Answer, Page, Reason, Report, live, ready
from eventlane.lanes import Lanes
from eventlane.metrics import Series
from eventlane.scraping import FRESH_S, page_of, read_durable

__all__ = ["Progress", "Vitals"]

log = logging.getLogger("eventlane.health")

_TURN_S_MAX = 1.0
_LOOK_S_MAX = 5.0
_NAMED_MAX = 10
"""Partitions that are named; there may be thousands, and a report has to stay small."""


class Progress:
    """For how long partitions with waiting events have stood still."""

    def __init__(self, still_s_max: float) -> None:
        self._still_s_max = still_s_max
        self._seen: dict[tuple[str, str, int], tuple[tuple[int, ...], float]] = {}
        """How far each of them was, and since when."""

    def look(
        self, groups: Mapping[str, Mapping[tuple[str, int], Lanes]], now_s: float
    ) -> list[str]:
        """Those that have stood still for too long, in sentences.

        Groups that are paused are to be left out, or wait for their rate: that is wanted.
        """
        before, self._seen = self._seen, {}
        found: list[str] = []
        for group, partitions in groups.items():
            for (topic, partition), lanes in partitions.items():
                if not (lanes.ready or lanes.lone or lanes.blocked or not lanes.has_room):
                    continue
                how_far = (lanes.epoch, lanes.done_so_far, lanes.span.next_untaken)
                place = (group, topic, partition)
                seen = before.get(place)
                if seen is None or seen[0] != how_far:
                    seen = (how_far, now_s)
                self._seen[place] = seen
                still_s = now_s - seen[1]
                if still_s > self._still_s_max:
                    what = lanes.why_blocked or (
                        f"{topic}[{partition}] has waiting events and makes no progress"
                    )
                    found.append(
                        f"group {group}: {what}; so for {still_s:.0f} s "
                        f"(Limits.progress_s_max={self._still_s_max:g})"
                    )
        return found


class Vitals:
    """The health of this process."""

    def __init__(self, limits: Limits) -> None:
        """To be made in the event loop."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._broker: tuple[Broker, Clock] | None = None
        self._reading = asyncio.Lock()
        self._read_s = -FRESH_S
        self._durable: tuple[Series, ...] = ()
        self._monotonic_s = SystemClock.monotonic_s
        self._turned_s = self._monotonic_s()
        self._dispatchers: Sequence[Dispatcher] = ()
        self._progress = Progress(limits.progress_s_max)
        self._still: list[str] = []
        self._state: Literal["starting", "ready", "draining"] = "starting"

    def handles(self, dispatchers: Sequence[Dispatcher], broker: Broker, clock: Clock) -> None:
        """It handles from now on."""
        self._dispatchers = dispatchers
        self._broker = (broker, clock)
        self._state = "ready"

    def drains(self) -> None:
        """It was asked to end."""
        self._state = "draining"

    async def watch(self) -> None:
        """Feel the pulse of the event loop, until cancelled."""
        turn_s = min(_TURN_S_MAX, self._limits.stall_s_max / 4)
        look_s = min(_LOOK_S_MAX, self._limits.progress_s_max / 4)
        looked_s = self._turned_s
        while True:
            await sleep(turn_s)
            self._turned_s = self._monotonic_s()
            if self._turned_s - looked_s >= look_s:
                looked_s = self._turned_s
                self._look()

    def report(self) -> Report:
        """How it is now."""
        limits = self._limits
        return Report(
            state=self._state,
            stalled_s=max(0.0, self._monotonic_s() - self._turned_s),
            stall_s_max=limits.stall_s_max,
            lease_s=limits.lease_s,
            drain_s=limits.drain_s,
            stuck_s=limits.stuck_s,
            reasons=tuple(self._reasons()),
            series=tuple(self.series()),
        )

    def series(self) -> Iterator[Series]:
        """What this process has counted."""
        for each in self._dispatchers:
            yield from each.telemetry.series()
        if self._broker is not None:
            for step, durations in self._broker[0].times.items():
                yield Series("eventlane_storage_seconds", (step,), durations.values)

    async def durable(self) -> tuple[Series, ...]:
        """What the broker has, a second old at most; nothing where it cannot be read."""
        async with self._reading:
            if self._broker is not None and self._monotonic_s() - self._read_s >= FRESH_S:
                try:
                    self._durable = await read_durable(*self._broker)
                except EventlaneError as error:
                    self._durable = ()
                    log.warning("/metrics lacks what the broker has: %s", error)
                self._read_s = self._monotonic_s()
        return self._durable

    def pages(self) -> dict[str, Page]:
        """What is served where this process is the only one."""

        def is_live() -> Answer:
            return live(is_live=self.report().is_turning)

        async def gather() -> Sequence[Series]:
            return (*self.series(), *await self.durable())

        return {
            "/live": is_live,
            "/ready": lambda: ready(self.report().all_reasons),
            "/metrics": page_of(gather, lambda: self._loop, lambda: tuple(self.series())),
        }

    def _look(self) -> None:
        groups = {
            each.plan.name: each.partitions
            for each in self._dispatchers
            if each.paused is None and not each.admission.is_slow
        }
        self._still = self._progress.look(groups, self._turned_s)

    def _reasons(self) -> Iterator[Reason]:
        for each in self._dispatchers:
            refused = each.settler.refused
            if refused is not None:
                detail = f"group {each.plan.name}: outcomes cannot be written: {refused}"
                yield Reason(reason="storage", detail=detail)
        still = self._still
        for sentence in still[:_NAMED_MAX]:
            yield Reason(reason="no-progress", detail=sentence)
        if len(still) > _NAMED_MAX:
            more = f"and {len(still) - _NAMED_MAX} partitions more"
            yield Reason(reason="no-progress", detail=more)
