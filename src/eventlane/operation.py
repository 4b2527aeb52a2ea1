"""A bulk change of dead letters, tracked until it has ended."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import get_args
from uuid import UUID

from eventlane.broker import Broker
from eventlane.config import did_you_mean
from eventlane.errors import ConfigError
from eventlane.failure import DeadLetter, LetterState

__all__ = ["Operation", "checked_reason", "checked_state", "ids_of"]


class Operation:
    """A replay or an archiving of dead letters. Durable: it goes on without this object."""

    def __repr__(self) -> str:
        return f"<Operation {self.id}>"

    def __init__(self, id: int, broker: Broker, moved: Callable[[], Awaitable[None]]) -> None:
        self.id = id
        """What other processes find it by."""
        self._broker = broker
        self._moved = moved

    async def letters(self) -> dict[UUID, LetterState]:
        """Its dead letters, and the state that each of them is in now."""
        return await self._broker.operation(self.id)

    async def wait(self) -> dict[LetterState, int]:
        """Wait until none of its letters is being replayed any more.

        A replay runs in a process that handles the group; without one this waits for one.

        Returns:
            How many of its letters are in each state: `resolved`, `open` again, `archived`.

        Cancellation:
            The operation goes on.
        """
        while True:
            states = (await self.letters()).values()
            if "replaying" not in states:
                return dict(Counter(states))
            await self._moved()


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
    known: tuple[str, ...] = get_args(LetterState)
    if state is not None and state not in known:
        raise ConfigError(
            f"state={state!r}: expected None for all, or one of {', '.join(known)}. "
            f"{did_you_mean(str(state), known)}"
        )
    return state
