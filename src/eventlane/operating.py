"""What an app's operators do: look at what failed, replay it, put it aside, pause groups."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Literal, overload
from uuid import UUID

from eventlane.account import Status
from eventlane.broker import Broker
from eventlane.clock import Clock
from eventlane.config import Limits, number
from eventlane.dispatch import Dispatcher
from eventlane.editing import diff_of, edited_record, republished_record
from eventlane.errors import NotFound, Refused
from eventlane.event import EventType
from eventlane.failure import HOST, DeadLetter, LetterState
from eventlane.message import Position
from eventlane.operation import (
    Letters,
    Operation,
    checked_operation_state,
    checked_reason,
    checked_state,
    ids_of,
    selection_of,
)
from eventlane.query import Query, query_of
from eventlane.replay import OperationState, OperationStatus, Pace, Plan
from eventlane.serde import Codecs
from eventlane.serde.outgoing import refuse_dlq
from eventlane.subscription import Subscription
from eventlane.views import FailureSummary, LetterEvent

__all__ = ["Operating"]

_LOOK_AGAIN_S = 0.05
"""How soon waiting looks again where nothing in this process would tell it."""


class Operating:
    """The part of `App` that looks after what failed."""

    name: str
    _options: dict[str, Any]
    _subscriptions: list[Subscription]
    _codecs: Codecs
    _clock: Clock
    _limits: Limits
    _dispatchers: list[Dispatcher]
    _has_moved: asyncio.Event

    @property
    def _connected(self) -> Broker:
        """The broker.

        Raises:
            Unavailable: The app is not connected.
        """
        raise NotImplementedError

    async def _moved(self) -> None:
        """Wait until something happened here, or may have happened elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._has_moved.wait()
        self._has_moved.clear()

    async def status(self) -> Status:
        """The account of every group, and the topics, at one moment.

        Raises:
            Unavailable: The app is not connected.
        """
        for dispatcher in self._dispatchers:
            dispatcher.beat()
        return await self._connected.status()

    async def dead_letters(
        self,
        *,
        group: str | None = None,
        state: LetterState | None = "open",
        query: Query | str | None = None,
        ids: Sequence[UUID] | None = None,
        limit: int = 1000,
        after: UUID | DeadLetter | None = None,
    ) -> Sequence[DeadLetter]:
        """Dead letters, in the order in which they died.

        Args:
            group: Of this group only.
            state: In this state only; None for all.
            query: That meet these conditions only: see `Query`.
            ids: Of these only.
            limit: At most so many.
            after: The last letter that was already seen.

        Raises:
            ConfigError: There is no such state or condition.
            NotFound: There is no letter `after`.
            Unavailable: The app is not connected.
        """
        number("dead_letters(limit", limit, least=1, whole=True)
        return await self._connected.dead_letters(
            group=group,
            state=checked_state(state),
            query=None if query is None else query_of(query),
            ids=ids,
            limit=limit,
            after=after.id if isinstance(after, DeadLetter) else after,
        )

    async def failures(
        self, *, group: str | None = None, state: LetterState = "open"
    ) -> Sequence[FailureSummary]:
        """Dead letters counted by their cause, the most frequent first.

        Args:
            group: Of this group only.
            state: In this state.

        Raises:
            ConfigError: There is no such state.
            Unavailable: The app is not connected.
        """
        checked_state(state)
        return await self._connected.failures(group=group, state=state)

    async def history(self, letter: DeadLetter | UUID) -> Sequence[LetterEvent]:
        """What was done to a dead letter: by whom, when and why, oldest first.

        Raises:
            NotFound: There is no such letter.
            Unavailable: The app is not connected.
        """
        return await self._connected.letter_history(ids_of(letter)[0])

    @overload
    async def replay(
        self,
        letters: Letters,
        *,
        reason: str,
        actor: str | None = None,
        rate_per_s: float | None = 50,
        canary: bool = True,
        pause_above: float | None = 0.05,
        allow_gap: bool = False,
        dry_run: Literal[False] = False,
    ) -> Operation: ...
    @overload
    async def replay(
        self,
        letters: Letters,
        *,
        reason: str = "",
        actor: str | None = None,
        rate_per_s: float | None = 50,
        canary: bool = True,
        pause_above: float | None = 0.05,
        allow_gap: bool = False,
        dry_run: Literal[True],
    ) -> Plan: ...
    async def replay(
        self,
        letters: Letters,
        *,
        reason: str = "",
        actor: str | None = None,
        rate_per_s: float | None = 50,
        canary: bool = True,
        pause_above: float | None = 0.05,
        allow_gap: bool = False,
        dry_run: bool = False,
    ) -> Operation | Plan:
        """Have dead letters handled again, each by the group that failed and by no other.

        A letter that closes its lane runs at the head of it, and what is parked behind it follows
        in order. One whose lane went on runs alone in its lane, with `ctx.late`. Each has a new
        budget of attempts, and is resolved only when its handler is done. Letters of one lane run
        in the order of the log; if one dies again, the later ones are open again without a run.

        Args:
            letters: Dead letters or their ids, or a query: a `Query` or its text, as in
                `"exc:KeyError key:c-991"`. A dead letter has to be as you saw it; for an id, any
                open one will do. Of a query's letters those that were replayed too often are left
                out: `Operation.left_out()` has them.
            reason: Kept with the change.
            actor: Who does it; the app and its host by default.
            rate_per_s: How many letters, and parked events that follow them, are released in a
                second; None for as many as the group handles.
            canary: 1 first, then 10, then the rest: each once all before it, and what followed,
                has ended.
            pause_above: Pause when more than this share of the last 50 that ended died again;
                None: never.
            allow_gap: Also where a letter passes an earlier one that closes their lane.
            dry_run: Change nothing, and say what would be done.

        Raises:
            ConfigError: An option is not what it should be.
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed already, or has changed since it was read; who
                changed it is said, and nothing was changed.
            Refused: A letter is archived or resolved, was replayed `Limits.replays_max` times, or
                would pass an earlier one of its lane; nothing was changed.
            Unavailable: The app is not connected.

        Durability:
            On return the operation survives a crash; processes that handle the group run it.
        """
        pace = Pace(rate_per_s=rate_per_s, canary=canary, pause_above=pause_above)
        broker, (selection, versions) = self._connected, selection_of(letters)
        if dry_run:
            return await broker.plan_replay(selection, versions=versions)
        begun = await broker.replay(
            selection,
            actor=actor or self._actor,
            reason=checked_reason(reason),
            pace=pace,
            allow_gap=allow_gap,
            versions=versions,
        )
        return self._operation(begun)

    async def archive(
        self, letters: Letters, *, reason: str, actor: str | None = None
    ) -> Operation:
        """Put dead letters aside, unhandled. Their lanes open, and what is parked there follows.

        Args:
            letters: Dead letters or their ids, or a query: see `replay`.
            reason: Kept with the change.
            actor: Who does it; the app and its host by default.

        Raises:
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed, or has changed since it was read; nothing was
                changed.
            Refused: A letter is archived or resolved already; nothing was changed.
            Unavailable: The app is not connected.
        """
        broker, (selection, versions) = self._connected, selection_of(letters)
        begun = await broker.archive(
            selection,
            actor=actor or self._actor,
            reason=checked_reason(reason),
            versions=versions,
        )
        return self._operation(begun)

    async def restore(
        self, letters: Letters, *, reason: str, actor: str | None = None
    ) -> Operation:
        """Open archived letters again. They close no lane any more: a replay of one runs late.

        Args:
            letters: Dead letters or their ids, or a query: see `replay`.
            reason: Kept with the change.
            actor: Who does it; the app and its host by default.

        Raises:
            NotFound: An id is unknown, or nothing meets the query; nothing was changed.
            Conflict: A letter is being replayed, or has changed since it was read; nothing was
                changed.
            Refused: A letter is not archived; nothing was changed.
            Unavailable: The app is not connected.
        """
        broker, (selection, versions) = self._connected, selection_of(letters)
        begun = await broker.restore(
            selection,
            actor=actor or self._actor,
            reason=checked_reason(reason),
            versions=versions,
        )
        return self._operation(begun)

    async def edit_and_replay(
        self, letter: DeadLetter | UUID, value: object, *, reason: str, actor: str | None = None
    ) -> Operation:
        """Have another event handled in the place of a dead one, by the group that failed.

        The letter becomes `edited`, and a child of it, with a new event id and the dead event as
        its cause, is replayed in its place in the lane. The audit keeps what was changed.

        Args:
            letter: A dead letter, or its id.
            value: An event of the letter's type, or its JSON as bytes, as text or as a dict. It is
                validated against the type that this app subscribes to in that group.
            reason: Kept with the change.
            actor: Who does it; the app and its host by default.

        Raises:
            Refused: The app does not allow it (`App(allow_edit=True)`) or does not handle the type,
                the letter is not open, or would pass an earlier one; nothing was changed.
            EventRefused: It is no event of that type: the field is named; nothing was changed.
            NotFound: There is no such letter.
            Conflict: It is being replayed, or has changed since it was read; nothing was changed.
            Unavailable: The app is not connected.
        """
        broker, why = self._connected, checked_reason(reason)
        self._refuse_unless_allowed("allow_edit", "edits no dead letters")
        found = await self._find(letter)
        kind = self._type_of(found)
        record = edited_record(
            found,
            value,
            kind,
            self._codecs.of(kind),
            now_ms=self._clock.now_ms(),
            bytes_max=self._limits.event_bytes_max,
        )
        begun = await broker.edit(
            found.id,
            record,
            diff=diff_of(found.value, record.value),
            actor=actor or self._actor,
            reason=why,
            version=letter.version if isinstance(letter, DeadLetter) else None,
        )
        return self._operation(begun)

    async def republish(
        self, letter: DeadLetter | UUID, *, reason: str, actor: str | None = None
    ) -> Position:
        """Publish the event of a dead letter again, to its topic: all groups handle it, as new.

        It has a new event id, and the dead event as its cause. The letter stays as it is.

        Returns:
            Where it lies.

        Raises:
            Refused: The app does not allow it (`App(allow_republish=True)`), or the topic is one of
                dead letters; nothing was changed.
            NotFound: There is no such letter.
            StorageFull: The topic or the file is at its cap; nothing was changed.
            Unavailable: The app is not connected.
        """
        broker, why = self._connected, checked_reason(reason)
        self._refuse_unless_allowed("allow_republish", "publishes no dead letters again")
        found = await self._find(letter)
        refuse_dlq(found.topic)
        record = republished_record(found, now_ms=self._clock.now_ms())
        return await broker.republish(found.id, record, actor=actor or self._actor, reason=why)

    async def operations(
        self, *, state: OperationState | None = None, limit: int = 100
    ) -> Sequence[OperationStatus]:
        """What operators have asked for, the newest first.

        Args:
            state: In this state only; None for all.
            limit: At most so many.

        Raises:
            ConfigError: There is no such state.
            Unavailable: The app is not connected.
        """
        number("operations(limit", limit, least=1, whole=True)
        return await self._connected.operations(state=checked_operation_state(state), limit=limit)

    async def operation(self, id: int) -> Operation:
        """An operation, which another process may have begun.

        Raises:
            NotFound: There is no such operation.
            Unavailable: The app is not connected.
        """
        status = await self._connected.operation(id)
        return self._operation(status.id)

    def _operation(self, id: int) -> Operation:
        return Operation(id, self._connected, self._moved, self._actor)

    def _refuse_unless_allowed(self, option: str, does: str) -> None:
        if not self._options[option]:
            raise Refused(
                f"app {self.name!r} {does}: expected App({option}=True), which permits it to "
                "whoever can call this app. Nothing was changed."
            )

    async def _find(self, letter: DeadLetter | UUID) -> DeadLetter:
        ids = ids_of(letter)
        for found in await self._connected.dead_letters(ids=ids, state=None):
            return found
        raise NotFound(f"dead letter {ids[0]}: there is none; nothing was changed")

    def _type_of(self, letter: DeadLetter) -> EventType[Any]:
        """What this app subscribes to in the letter's group."""
        known = {
            kind.name: kind
            for subscription in self._subscriptions
            for kind in subscription.event_types
            if subscription.group == letter.group
            and (subscription.topic or kind.topic.name) == letter.topic
        }
        if letter.event_type in known:
            return known[letter.event_type]
        if letter.event_type is None and len(known) == 1:
            return next(iter(known.values()))
        raise Refused(
            f"dead letter {letter.id}: expected an app that handles {letter.event_type or 'it'} of "
            f"topic {letter.topic!r} in group {letter.group!r}, since its type validates what is "
            f"edited; app {self.name!r} handles {', '.join(sorted(known)) or 'nothing'} there. "
            "Nothing was changed."
        )

    async def pause(self, group: str, *, reason: str, actor: str | None = None) -> None:
        """Stop a group from starting handlers, in all processes, until it is resumed.

        Raises:
            Conflict: It is paused already; the message says by whom and why.
            NotFound: There is no such group.
            Unavailable: The app is not connected.
        """
        who, why = actor or self._actor, checked_reason(reason)
        await self._connected.pause(group, actor=who, reason=why)

    async def resume(self, group: str, *, actor: str | None = None) -> None:
        """Let a paused group go on.

        Raises:
            Conflict: It is not paused; the message says who resumed it.
            NotFound: There is no such group.
            Unavailable: The app is not connected.
        """
        await self._connected.resume(group, actor=actor or self._actor)

    @property
    def _actor(self) -> str:
        return f"{self.name}@{HOST}"
