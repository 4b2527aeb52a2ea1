"""What operations staff do once the flow is quiet: put right what they can, put aside the rest.

A round archives the invalid orders with a reason, corrects the catalogue, restocks, and replays the
other dead orders to the group that failed. A replayed order opens its household's lane, and the
orders that waited behind it follow in order. Some of these may be invalid themselves, hence there
are rounds until one changes nothing.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from eventlane import App, DeadLetter

from .inventory import InvalidQuantity, Inventory

__all__ = ["Recovered", "open_letters", "recover"]

PAGE_LETTERS = 1000
"""Dead letters that one call asks for, and one operation changes."""

GROUP = "inventory"


@dataclass(kw_only=True)
class Recovered:
    """What the rounds did. `rounds` counts those that changed something."""

    replayed: int = 0
    resolved: int = 0
    archived: int = 0
    rounds: int = 0


async def open_letters(app: App) -> AsyncIterator[list[DeadLetter]]:
    """Yield the open dead letters of the inventory, page by page, the oldest first."""
    after = None
    while page := list(
        await app.dead_letters(group=GROUP, state="open", limit=PAGE_LETTERS, after=after)
    ):
        yield page
        after = page[-1].id


async def recover(app: App, inventory: Inventory) -> Recovered:
    """Recover what it can, round by round, and return what the rounds did.

    The flow must be quiet; each round then handles until it is quiet again.
    """
    recovered = Recovered()
    while await _round(app, inventory, recovered):
        recovered.rounds += 1
    return recovered


async def _round(app: App, inventory: Inventory, recovered: Recovered) -> bool:
    """Do one round and tell whether it changed anything."""
    actor = "operations"
    letters = [letter async for page in open_letters(app) for letter in page]
    invalid = [letter for letter in letters if letter.error_class == InvalidQuantity.__name__]
    others = [letter for letter in letters if letter.error_class != InvalidQuantity.__name__]
    for page in _pages(invalid):
        await app.archive(page, reason="a line asks for less than one unit", actor=actor)
    added = await inventory.correct_catalogue()
    arrived = await inventory.restock()
    replays = [
        await app.replay(
            page,
            reason="catalogue corrected, new stock is in",
            actor=actor,
            canary=False,
            rate_per_s=None,
            pause_above=None,
        )
        for page in _pages(others)
    ]
    resolved = sum([(await replay.wait()).resolved for replay in replays])
    await app.run_until_idle()  # what waited behind the resolved ones follows
    recovered.archived += len(invalid)
    recovered.replayed += len(others)
    recovered.resolved += resolved
    return bool(invalid or added or arrived or resolved)


def _pages(letters: list[DeadLetter]) -> list[list[DeadLetter]]:
    return [letters[start : start + PAGE_LETTERS] for start in range(0, len(letters), PAGE_LETTERS)]
