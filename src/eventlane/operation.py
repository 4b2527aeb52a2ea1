"""A bulk change of dead letters, tracked until it has ended."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from uuid import UUID

from eventlane.broker import Broker
from eventlane.failure import DeadLetter, LetterState

__all__ = ["Operation", "ids_of"]


class Operation:
    """A replay or an archiving of dead letters. Durable: it goes on without this object."""

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
    """The ids of one or several dead letters."""
    several = [letters] if isinstance(letters, DeadLetter | UUID) else letters
    return [each.id if isinstance(each, DeadLetter) else each for each in several]
