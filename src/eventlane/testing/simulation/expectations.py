"""What the checker cannot know: what handlers and publishers were promised, and was it kept?"""

from collections.abc import Iterator
from uuid import UUID

from eventlane.testing.history import Final, Started
from eventlane.testing.simulation.plan import Group
from eventlane.testing.simulation.world import World

__all__ = ["Expectations"]


class Expectations:
    """The promises of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next: dict[tuple[str, str, int, int], tuple[int, int, float]] = {}
        """For what failed: its next attempt, and when that may start by each of the clocks."""
        self._written: set[UUID] = set()
        """Ids of events that are on the log, or somebody was told a lie."""
        self._unwritten: set[UUID] = set()
        """Ids of events that must not be on the log."""

    def is_written(self, event_id: UUID) -> None:
        """Its publisher was told so, or a settlement with it was accepted."""
        self._written.add(event_id)

    def is_not_written(self, event_id: UUID) -> None:
        """Its publisher was told so, or the handler that published it has failed."""
        self._unwritten.add(event_id)

    def failed(self, group: Group, started: Started) -> None:
        """A run failed in a way that its policy retries."""
        policy, attempt = group.retry, started.attempt
        delayed = attempt - policy.immediate
        delay_s = policy.delay_s * policy.factor ** (delayed - 1) if delayed > 0 else 0.0
        due_ms = self._world.clock.now_ms() + int(delay_s * 1000)
        due_s = self._world.schedule.now_s + delay_s
        self._next[_event_of(started)] = (attempt + 1, due_ms, due_s)

    def began(self, group: Group, started: Started) -> None:
        """A run began."""
        attempt, due_ms, due_s = self._next.pop(_event_of(started), (0, 0, 0.0))
        if started.attempt == attempt and not started.replayed:
            early_s = due_s - self._world.schedule.now_s
            # Wall time may jump: it is early only if no clock has reached what was wanted.
            if started.at_ms < due_ms and early_s > 0.001:
                self._wrong(started, f"its policy wants it to wait {early_s:.3f} s longer")
        if started.attempt > group.retry.attempts:
            self._wrong(started, f"its policy has only {group.retry.attempts} attempts")

    def _wrong(self, started: Started, why: str) -> None:
        self._world.went_wrong(f"{started}: {why}", None)

    def broken(self, final: Final) -> Iterator[str]:
        """Which promises about the log were not kept."""
        on_log = {event_id for log in final.log or () for _, _, event_id in log.events}
        for event_id in sorted(self._written - on_log):
            yield f"event {event_id} was acknowledged, and is not on the log"
        for event_id in sorted(self._unwritten & on_log):
            yield f"event {event_id} was refused, or its handler failed, and it is on the log"


def _event_of(started: Started) -> tuple[str, str, int, int]:
    return started.group, started.topic, started.partition, started.offset
