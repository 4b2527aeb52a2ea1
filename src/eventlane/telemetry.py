"""What a group tells of itself while it runs: what it counts, and the lines that it logs.

A line for what matters, never one for each event. Besides its words a line has fields, as
attributes of its `LogRecord`; `docs/howto/logging.md` names them.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from eventlane.clock import Clock
from eventlane.failure import DeadLetter
from eventlane.lane import LaneKey
from eventlane.lanes import Lanes
from eventlane.metrics import Histogram, Series
from eventlane.settlement import Acquired, Settlement
from eventlane.subscription import Subscription

__all__ = ["FailureKind", "Telemetry", "WallClock"]

log = logging.getLogger("eventlane.group")

_DEATHS_PER_S = 5
"""Events that have a line of their own when they die; the others share one."""
_JUMP_S_MIN = 1.0

FailureKind = Literal["error", "timeout", "undecodable", "outage", "returned"]
"""What ended a run; `returned`: its handler gave `RetryLater`, `Dead` or what is no outcome."""


class WallClock:
    """Notices that the wall clock was set. One per process and app."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_s = self._measured_s()

    def look(self) -> None:
        """Log it if the wall clock was set since the last look; to be called every second."""
        before_s, self._ahead_s = self._ahead_s, self._measured_s()
        jump_s = self._ahead_s - before_s
        if abs(jump_s) > _JUMP_S_MIN:
            log.warning(
                "the wall clock was set %s by %.1f s%s",
                *("forward" if jump_s > 0 else "back", abs(jump_s)),
                ", or this machine slept: retries become due earlier"
                if jump_s > 0
                else ": retries become due later by as much",
                extra={"kind": "clock_set", "jump_s": jump_s},
            )

    def _measured_s(self) -> float:
        """By how much wall time is ahead of the time that only passes."""
        return self._clock.now_ms() / 1000 - self._clock.monotonic_s()


class Telemetry:
    """Of one group in this process."""

    def __init__(self, group: str, clock: Clock, wall: WallClock) -> None:
        self._group = group
        self._clock = clock
        self._wall = wall
        self._counts = Counter[tuple[str, ...]]()
        """By the name of the metric and its labels, the group apart."""
        self._handlers: dict[str, Histogram] = {}
        self._settling = Histogram()
        self._blocked: dict[tuple[str, int], LaneKey] = {}
        """Partitions that take nothing new, and the event or the key because of which."""
        self._since_s = clock.monotonic_s()
        """When the second began in which deaths are counted."""
        self._deaths = 0

    # --- counting ---------------------------------------------------------------------------

    def took(self, subscription: Subscription | None, duration_s: float) -> None:
        """A handler was measured."""
        if subscription is not None:
            durations = self._handlers.get(subscription.name)
            if durations is None:
                durations = self._handlers[subscription.name] = Histogram()
            durations.observe(duration_s)

    def failed(
        self,
        subscription: Subscription,
        kind: FailureKind,
    ) -> None:
        """A run did not end well."""
        self._counts["eventlane_failures_total", subscription.name, kind] += 1

    def settled(self, settled: Sequence[tuple[Lanes, Settlement]], took_s: float) -> None:
        """These are durable."""
        counts = self._counts
        self._settling.observe(took_s)
        for lanes, each in settled:
            counts["eventlane_attempts_total", "done"] += each.done
            counts["eventlane_attempts_total", "skipped"] += each.skipped
            counts["eventlane_attempts_total", "retry"] += len(each.attempts)
            counts["eventlane_attempts_total", "dead"] += len(each.dead)
            counts["eventlane_parked_total",] += len(each.parked)
            counts["eventlane_redelivered_total",] += lanes.suspects.count_ended()
            for letter in each.dead:
                self._died(letter)
            for change in each.letters:
                counts["eventlane_replays_total", change.outcome] += 1
                if change.failed is not None:
                    self._died(change.failed)

    def series(self) -> Iterator[Series]:
        """All that was counted. For any thread."""
        for (name, *labels), count in self._counts.copy().items():
            yield Series(name, (self._group, *labels), (count,))
        for handler, durations in self._handlers.copy().items():
            yield Series("eventlane_handler_seconds", (self._group, handler), durations.values)
        yield Series("eventlane_settle_seconds", (self._group,), self._settling.values)

    # --- lines ------------------------------------------------------------------------------

    def acquired(self, change: Acquired) -> None:
        """This process has a partition from now on."""
        log.debug(
            "group %s: %s[%d] is handled here from offset %d on",
            *(self._group, change.topic, change.partition, change.watermark),
            extra=self._fields("partition_acquired", change.place, offset=change.watermark),
        )

    def paused(self, before: str | None, reason: str | None) -> None:
        """The group is paused for this reason, or goes on."""
        if reason is not None and reason != before:
            extra = self._fields("group_paused", reason=reason)
            log.warning("group %s is paused: %s", self._group, reason, extra=extra)
        elif reason is None and before is not None:
            log.warning("group %s goes on", self._group, extra=self._fields("group_resumed"))

    def look(self, partitions: Mapping[tuple[str, int], Lanes]) -> list[str]:
        """Log which partitions have stopped and which go on; to be called every second.

        Returns:
            Why those that have stopped do not go on.
        """
        self._wall.look()
        if self._clock.monotonic_s() - self._since_s >= 1.0:
            self.sum_up()
        before, self._blocked = self._blocked, {}
        sentences: list[str] = []
        for place, lanes in partitions.items():
            why = lanes.why_blocked
            if why:
                sentences.append(why)
                cause = min(lanes.stopped) if lanes.stopped else _key_of_full(lanes)
                self._blocked[place] = cause
                if before.get(place) != cause:
                    kind = "partition_stopped" if lanes.stopped else "partition_full"
                    extra = self._fields(kind, place, reason=why)
                    log.warning("group %s: %s", self._group, why, extra=extra)
            elif place in before:
                extra = self._fields("partition_goes_on", place)
                log.warning("group %s: %s[%d] goes on", self._group, *place, extra=extra)
        return sentences

    def sum_up(self) -> None:
        """Log how many died without a line of their own."""
        more = self._deaths - _DEATHS_PER_S
        self._since_s, self._deaths = self._clock.monotonic_s(), 0
        if more > 0:
            log.error(
                "group %s: %d more events died; `eventlane failures` has them by their cause",
                *(self._group, more),
                extra=self._fields("events_dead", count=more),
            )

    def _died(self, letter: DeadLetter) -> None:
        if self._clock.monotonic_s() - self._since_s >= 1.0:
            self.sum_up()
        self._deaths += 1
        if self._deaths > _DEATHS_PER_S:
            return
        key = None if letter.key is None else letter.key.decode("utf-8", "backslashreplace")
        log.error(
            "group %s: %s[%d] offset %d%s is dead after attempt %d: %s, fingerprint %s",
            *(self._group, letter.topic, letter.partition, letter.offset),
            *("" if key is None else f", key {key!r},", letter.attempts),
            *(letter.error_class, letter.fingerprint),
            extra=self._fields(
                "event_dead",
                (letter.topic, letter.partition),
                offset=letter.offset,
                key=key,
                handler=letter.handler,
                error_class=letter.error_class,
                fingerprint=letter.fingerprint,
                attempts=letter.attempts,
                dead_letter=str(letter.id),
            ),
        )

    def _fields(
        self, kind: str, place: tuple[str, int] | None = None, **more: object
    ) -> dict[str, object]:
        where = {} if place is None else {"topic": place[0], "partition": place[1]}
        return {"kind": kind, "group": self._group, **where, **more}


def _key_of_full(lanes: Lanes) -> LaneKey:
    assert lanes.full is not None, "what is blocked is stopped or full"
    return lanes.full.key
