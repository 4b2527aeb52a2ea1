"""Brokers that are broken on purpose, each with the case that must catch it.

A suite that cannot fail proves nothing. Each of these stands around a broker that keeps all the
promises, and breaks one of them in the way in which a real broker might.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from eventlane.account import Status
from eventlane.broker import Broker, Consumer
from eventlane.errors import Conflict, Fenced, Refused
from eventlane.message import Position, Record
from eventlane.query import Query
from eventlane.settlement import (
    Acquired,
    Batch,
    Change,
    GroupSpec,
    LaneState,
    Parked,
    Settlement,
)
from eventlane.testing import (
    crash_cases,
    group_cases,
    lane_cases,
    letter_cases,
    log_cases,
    operator_cases,
    parking_cases,
    rate_cases,
)
from eventlane.testing.conformance import Case
from eventlane.testing.passing import PassingBroker, PassingConsumer

__all__ = ["BROKEN", "Broken"]


class Broken(NamedTuple):
    """A broken broker."""

    wrap: Callable[[Broker], Broker]
    """Breaks a good one: see `Storage`."""
    caught_by: Case
    """The case that cannot pass."""


class _RatesApart(PassingBroker):
    """Gives each process a rate of its own."""

    async def reserve(self, name: str, rate_per_s: float, count: int) -> int:
        return await super().reserve(f"{name} {id(self)}", rate_per_s, count)


class _Late(PassingBroker):
    """Acknowledges an event, and writes it only before the next one is written or read."""

    def __init__(self, real: Broker) -> None:
        super().__init__(real)
        self._late: list[tuple[str, Record]] = []

    def publish(self, topic: str, record: Record) -> Awaitable[Position]:
        return self._publish(topic, record)

    async def _publish(self, topic: str, record: Record) -> Position:
        await self._write()
        self._late.append((topic, record))
        return Position(topic, 0, (await self.real.ends(topic))[0][1])

    async def append(
        self,
        appends: Sequence[tuple[str, Sequence[Record]]],
        *,
        begun: Callable[[], None] | None = None,
    ) -> None:
        await self._write()
        await self.real.append(appends, begun=begun)

    async def _write(self) -> None:
        while self._late:
            await self.real.publish(*self._late.pop(0))


class _ForgetsTheLast(_Late):
    """An event that was acknowledged is not there until another one follows."""


class _AcknowledgesEarly(_Late):
    """An event that was acknowledged can be read, and is gone after a restart."""

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        await self._write()
        return await self.real.fetch(topic, partition, offset, count_max)


class _Reorders(PassingBroker):
    """Writes many events in the wrong order."""

    async def append(
        self,
        appends: Sequence[tuple[str, Sequence[Record]]],
        *,
        begun: Callable[[], None] | None = None,
    ) -> None:
        turned = [(topic, list(reversed(records))) for topic, records in appends]
        await self.real.append(turned, begun=begun)


class _Skips(PassingBroker):
    """Leaves out an event when many are read."""

    async def fetch(self, topic: str, partition: int, offset: int, count_max: int) -> Batch:
        offsets, records = await self.real.fetch(topic, partition, offset, count_max)
        if len(records) > 2:
            return Batch([*offsets[:1], *offsets[2:]], [*records[:1], *records[2:]])
        return Batch(offsets, records)


class _CountsTwice(PassingBroker):
    """Counts what is done twice."""

    async def status(self) -> Status:
        status = await self.real.status()
        groups = {
            name: msgspec.structs.replace(account, done=2 * account.done)
            for name, account in status.groups.items()
        }
        return msgspec.structs.replace(status, groups=groups)


class _LetsBothWin(PassingBroker):
    """Tells every operator that he was first."""

    async def replay(self, letters: Sequence[UUID] | Query, **options: Any) -> int:
        try:
            return await self.real.replay(letters, **options)
        except (Conflict, Refused):
            return 1

    async def archive(self, letters: Sequence[UUID] | Query, **options: Any) -> int:
        try:
            return await self.real.archive(letters, **options)
        except (Conflict, Refused):
            return 1


class _ComparesStatesOnly(PassingBroker):
    """Does not care what an operator has seen."""

    async def replay(self, letters: Sequence[UUID] | Query, **options: Any) -> int:
        options["versions"] = None
        return await self.real.replay(letters, **options)


class _ReplaysToAll(PassingBroker):
    """Replays an event in every group in which it is dead."""

    async def replay(self, letters: Sequence[UUID] | Query, **options: Any) -> int:
        every = await self.real.dead_letters()
        events = {
            each.event_id for each in every if not isinstance(letters, Query) and each.id in letters
        }
        return await self.real.replay(
            [each.id for each in every if each.event_id in events], **options
        )


class _ForgetsPauses(PassingBroker):
    """Says that a group is paused, and does not write it down."""

    async def pause(self, group: str, *, actor: str, reason: str) -> None:
        await self.real.pause(group, actor=actor, reason=reason)
        await self.real.resume(group, actor=actor)


class _Settling(PassingBroker):
    """Hands out consumers of a broken kind."""

    kind: type[PassingConsumer]

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        return self.kind(real, group)


class _SettlesWithout(PassingConsumer):
    """Leaves out some fields of what it settles."""

    without: tuple[str, ...]

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        left_out = dict.fromkeys(self.without, ())
        await self.real.settle([msgspec.structs.replace(each, **left_out) for each in settlements])


class _AcceptsStaleEpochs(PassingConsumer):
    """Writes what a former owner settles as far as it can, and says that all is well."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        try:
            await self.real.settle(settlements)
        except Fenced as error:
            good = [
                each for each in settlements if (each.topic, each.partition) not in error.partitions
            ]
            if good:
                await self.real.settle(good)


class _PublishesFirst(PassingConsumer):
    """Writes what handlers published before the outcome, and not with it."""

    broker: Broker

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            for published in settlement.published:
                await self.broker.append([published])
        await self.real.settle(
            [msgspec.structs.replace(each, published=()) for each in settlements]
        )


class _PublishesApart(PassingBroker):
    """See `_PublishesFirst`."""

    def consumer(self, real: Consumer, group: GroupSpec) -> Consumer:
        consumer = _PublishesFirst(real, group)
        consumer.broker = self.real
        return consumer


class _ForgetsOnTakeover(PassingConsumer):
    """Tells a new owner less than was stored."""

    def forget(self, acquired: Acquired) -> Acquired:
        """What is told instead."""
        return acquired

    async def changes(self) -> Sequence[Change]:
        return [
            self.forget(each) if isinstance(each, Acquired) else each
            for each in await self.real.changes()
        ]


class _ForgetsCommands(_ForgetsOnTakeover):
    """Tells commands only to who owns the partition when they are given."""

    def forget(self, acquired: Acquired) -> Acquired:
        return msgspec.structs.replace(acquired, commands=())


class _ForgetsDueTimes(_ForgetsOnTakeover):
    """Knows how often an event has failed, and not until when it is to wait."""

    def forget(self, acquired: Acquired) -> Acquired:
        attempts = tuple(msgspec.structs.replace(each, due_ms=0) for each in acquired.attempts)
        return msgspec.structs.replace(acquired, attempts=attempts)


class _ForgetsParkedAttempts(PassingConsumer):
    """Knows what is parked, and not how often it has failed."""

    async def fetch_parked(
        self, topic: str, partition: int, lane: bytes | int, after: int, count_max: int
    ) -> Sequence[Parked]:
        rows = await self.real.fetch_parked(topic, partition, lane, after, count_max)
        return [Parked(offset, record, None) for offset, record, _ in rows]


class _ForgetsGaps(_ForgetsOnTakeover):
    """Does not know any more what lanes have passed over."""

    def forget(self, acquired: Acquired) -> Acquired:
        lanes = tuple(msgspec.structs.replace(each, gaps=()) for each in acquired.lanes)
        return msgspec.structs.replace(acquired, lanes=lanes)


class _ParkedAreDueAtOnce(_ForgetsOnTakeover):
    """Does not know any more until when a parked retry is to wait."""

    def forget(self, acquired: Acquired) -> Acquired:
        lanes = tuple(
            msgspec.structs.replace(each, due_ms=0) if each.due_ms else each
            for each in acquired.lanes
        )
        return msgspec.structs.replace(acquired, lanes=lanes)

    async def fetch_parked(
        self, topic: str, partition: int, lane: bytes | int, after: int, count_max: int
    ) -> Sequence[Parked]:
        rows = await self.real.fetch_parked(topic, partition, lane, after, count_max)
        return [
            Parked(offset, record, attempts and msgspec.structs.replace(attempts, due_ms=0))
            for offset, record, attempts in rows
        ]


class _KnowsNoOtherLanes(PassingConsumer):
    """Says of lanes that are looked up that they are free."""

    async def fetch_lanes(
        self, topic: str, partition: int, lanes: Sequence[bytes | int]
    ) -> Sequence[LaneState]:
        found = await self.real.fetch_lanes(topic, partition, lanes)
        return [each for each in found if each.is_free]


class _ForgetsSuspects(_ForgetsOnTakeover):
    """Does not tell what was in flight when a process died."""

    def forget(self, acquired: Acquired) -> Acquired:
        return msgspec.structs.replace(acquired, suspects=())


class _SuspectsTooMuch(_ForgetsOnTakeover):
    """Counts an end of a process for all that was in flight, as if each had run alone."""

    def forget(self, acquired: Acquired) -> Acquired:
        suspects = tuple((start, stop, 9) for start, stop, _ in acquired.suspects)
        return msgspec.structs.replace(acquired, suspects=suspects)


class _SkipsOnTakeover(_ForgetsOnTakeover):
    """Takes the event that was to come next for handled, after an unclean end."""

    def forget(self, acquired: Acquired) -> Acquired:
        skipped = bool(acquired.suspects)
        return msgspec.structs.replace(acquired, watermark=acquired.watermark + skipped)


class _ForgetsBlockers(_ForgetsOnTakeover):
    """Opens all lanes when a partition changes its owner."""

    def forget(self, acquired: Acquired) -> Acquired:
        lanes = tuple(msgspec.structs.replace(each, blockers=()) for each in acquired.lanes)
        return msgspec.structs.replace(acquired, lanes=lanes)


def _settling(kind: type[PassingConsumer]) -> Callable[[Broker], Broker]:
    def wrap(real: Broker) -> Broker:
        broker = _Settling(real)
        broker.kind = kind
        return broker

    return wrap


def _without(*fields: str) -> Callable[[Broker], Broker]:
    return _settling(type("SettlesWithout", (_SettlesWithout,), {"without": fields}))


BROKEN: dict[str, Broken] = {
    "forgets the last event": Broken(
        _ForgetsTheLast, log_cases.every_acknowledged_event_is_on_the_log_at_once
    ),
    "acknowledges before it is durable": Broken(
        _AcknowledgesEarly, log_cases.an_acknowledged_event_is_there_after_reopening
    ),
    "reorders within a key": Broken(
        _Reorders, log_cases.records_of_one_key_keep_the_order_of_the_calls
    ),
    "skips an event when it reads": Broken(
        _Skips, log_cases.a_fetch_may_start_anywhere_and_skips_nothing
    ),
    "counts twice": Broken(_CountsTwice, group_cases.the_account_balances_after_every_settlement),
    "lets both operators win": Broken(_LetsBothWin, operator_cases.of_two_operators_one_wins),
    "compares states only": Broken(
        _ComparesStatesOnly, operator_cases.a_letter_that_has_changed_since_it_was_seen_is_refused
    ),
    "replays to all groups": Broken(
        _ReplaysToAll, operator_cases.a_replay_reaches_only_the_group_that_failed
    ),
    "replays to all groups of an app": Broken(
        _ReplaysToAll, letter_cases.a_replay_runs_in_the_group_that_failed_and_nowhere_else
    ),
    "gives each process a rate of its own": Broken(
        _RatesApart, rate_cases.permits_of_all_processes_are_spaced_by_the_rate
    ),
    "forgets a pause": Broken(_ForgetsPauses, group_cases.a_pause_is_durable_and_told_to_members),
    "accepts stale epochs": Broken(
        _settling(_AcceptsStaleEpochs), group_cases.a_stale_epoch_is_fenced_and_nothing_is_written
    ),
    "publishes apart from the outcome": Broken(
        _PublishesApart, group_cases.published_events_and_the_outcome_are_written_together
    ),
    "forgets attempts": Broken(
        _without("attempts"), lane_cases.attempts_never_go_down_over_restarts
    ),
    "forgets due times": Broken(
        _settling(_ForgetsDueTimes), lane_cases.a_retry_is_not_early_after_a_restart_either
    ),
    "drops parked events": Broken(
        _without("parked"), group_cases.parked_events_are_read_back_in_order_byte_for_byte
    ),
    "forgets the attempts of parked events": Broken(
        _settling(_ForgetsParkedAttempts),
        parking_cases.attempts_of_a_parked_event_never_go_down_over_restarts,
    ),
    "forgets due times of parked events": Broken(
        _settling(_ParkedAreDueAtOnce),
        parking_cases.a_parked_retry_is_not_early_and_nothing_passes_it,
    ),
    "forgets lanes that are not in memory": Broken(
        _settling(_KnowsNoOtherLanes),
        parking_cases.more_parked_lanes_than_memory_holds_keep_their_order,
    ),
    "forgets gaps": Broken(
        _settling(_ForgetsGaps),
        parking_cases.gaps_name_what_a_lane_passed_over_until_it_is_resolved,
    ),
    "forgets what was in flight": Broken(
        _settling(_ForgetsSuspects),
        group_cases.what_was_in_flight_at_an_unclean_end_is_suspected,
    ),
    "never lets anything run alone": Broken(
        _settling(_ForgetsSuspects),
        crash_cases.an_event_that_kills_its_process_is_dead_and_no_bystander_is_charged,
    ),
    "charges bystanders": Broken(
        _settling(_SuspectsTooMuch),
        crash_cases.an_event_that_kills_its_process_is_dead_and_no_bystander_is_charged,
    ),
    "passes over an event after a crash": Broken(
        _settling(_SkipsOnTakeover),
        crash_cases.after_a_crash_a_lane_runs_again_from_some_event_on_and_in_order,
    ),
    "drops dead letters": Broken(
        _without("dead"), letter_cases.a_dead_letter_keeps_the_whole_event_and_how_it_failed
    ),
    "drops what handlers publish": Broken(
        _without("published"), group_cases.published_events_and_the_outcome_are_written_together
    ),
    "forgets which lanes are closed": Broken(
        _settling(_ForgetsBlockers), letter_cases.order_holds_through_dead_letter_restart_and_replay
    ),
    "forgets commands": Broken(
        _settling(_ForgetsCommands),
        operator_cases.a_command_waits_for_an_owner_and_is_carried_out_once,
    ),
    "repeats commands": Broken(
        _without("commands"), operator_cases.a_command_waits_for_an_owner_and_is_carried_out_once
    ),
}
"""By what is wrong with it."""
