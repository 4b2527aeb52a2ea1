"""A bulk change of dead letters, tracked until it has ended; and what one is begun with."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import get_args
from uuid import UUID

from eventlane.broker import Broker
from eventlane.errors import ConfigError
from eventlane.failure import DeadLetter, LetterState
from eventlane.query import Query, query_of
from eventlane.replay import LeftOut, OperationState, OperationStatus
from eventlane.wording import near

__all__ = [
    "Letters",
    "Operation",
    "checked_operation_state",
    "checked_reason",
    "checked_state",
    "ids_of",
    "selection_of",
]


Letters = DeadLetter | UUID | Iterable[DeadLetter | UUID] | Query | str
"""What an operation is about: letters that are named, or a query."""


class Operation:
    """A replay, an archiving, … of dead letters. Durable: it goes on without this object."""

    def __repr__(self) -> str:
        return f"<Operation {self.id}>"

    def __init__(
        self, id: int, broker: Broker, moved: Callable[[], Awaitable[None]], actor: str
    ) -> None:
        self.id = id
        """What other processes find it by."""
        self._broker = broker
        self._moved = moved
        self._actor = actor

    async def status(self) -> OperationStatus:
        """How far it is, and what it waits for."""
        return await self._broker.operation(self.id)

    async def letters(self) -> dict[UUID, LetterState]:
        """Its dead letters, and the state that each of them is in now."""
        return await self._broker.operation_letters(self.id)

    async def left_out(self, *, limit: int = 1000) -> Sequence[LeftOut]:
        """Letters that it has skipped or returned, and why."""
        return await self._broker.left_out(self.id, limit=limit)

    async def wait(self) -> OperationStatus:
        """Wait until it has ended, or is paused.

        A replay runs in a process that handles the group; without one this waits for one, and
        `status` says so.

        Returns:
            How it has ended: `failed` letters are open again, and so are `returned` ones.

        Cancellation:
            The operation goes on.
        """
        while True:
            status = await self.status()
            if status.has_ended or status.state == "paused":
                return status
            await self._moved()

    async def pause(self, *, reason: str, actor: str | None = None) -> None:
        """Release no further letters; those that were released go on.

        Raises:
            Conflict: It is paused already; the message says by whom.
            Refused: It has ended, or was cancelled.
        """
        who, why = actor or self._actor, checked_reason(reason)
        await self._broker.pause_operation(self.id, actor=who, reason=why)

    async def resume(self, *, reason: str, actor: str | None = None) -> None:
        """Let it go on where it was paused. What has died again until now counts no more.

        Raises:
            Conflict: It runs already.
            Refused: It has ended, or was cancelled.
        """
        who, why = actor or self._actor, checked_reason(reason)
        await self._broker.resume_operation(self.id, actor=who, reason=why)

    async def cancel(self, *, reason: str, actor: str | None = None) -> None:
        """Open the letters again that were not released; those that were released go on.

        Raises:
            Conflict: It was cancelled already; the message says by whom.
            Refused: It has ended.
        """
        who, why = actor or self._actor, checked_reason(reason)
        await self._broker.cancel_operation(self.id, actor=who, reason=why)


def selection_of(letters: Letters) -> tuple[list[UUID] | Query, dict[UUID, int]]:
    """The same as ids or as a query, and the versions of those that were given as letters.

    Raises:
        ConfigError: It is something else, or nothing.
    """
    if isinstance(letters, Query | str):
        return query_of(letters), {}
    named = list(letters) if isinstance(letters, Iterator) else letters
    ids = ids_of(named)
    several = [named] if isinstance(named, DeadLetter | UUID) else named
    return ids, {each.id: each.version for each in several if isinstance(each, DeadLetter)}


def ids_of(letters: DeadLetter | UUID | Iterable[DeadLetter | UUID]) -> list[UUID]:
    """The ids of one or several dead letters.

    Raises:
        ConfigError: It is something else, or nothing.
    """
    several = [letters] if isinstance(letters, DeadLetter | UUID) else letters
    expected = "expected a dead letter or its id (a UUID), or several of them"
    if isinstance(several, str | bytes) or not isinstance(several, Iterable):
        raise ConfigError(f"{expected}, got {several!r}.")
    ids = [each.id if isinstance(each, DeadLetter) else each for each in several]
    for each in ids:
        if not isinstance(each, UUID):
            raise ConfigError(f"{expected}, got {each!r} among them.")
    if not ids:
        raise ConfigError(f"{expected}, got none.")
    return ids


def checked_reason(reason: str) -> str:
    """The reason that an operator gives.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigError(
            f"reason={reason!r}: expected some words. They are kept with the change, for whoever "
            "asks later why it was made."
        )
    return reason


def checked_state(state: LetterState | None) -> LetterState | None:
    """A state of dead letters to look for.

    Raises:
        ConfigError: There is none such.
    """
    _refuse_unknown(state, get_args(LetterState))
    return state


def checked_operation_state(state: OperationState | None) -> OperationState | None:
    """A state of operations to look for.

    Raises:
        ConfigError: There is none such.
    """
    _refuse_unknown(state, get_args(OperationState))
    return state


def _refuse_unknown(state: str | None, known: tuple[str, ...]) -> None:
    if state is not None and state not in known:
        raise ConfigError(
            f"state={state!r}: expected None for all, or one of {', '.join(known)}."
            f"{near(str(state), known)}"
        )
