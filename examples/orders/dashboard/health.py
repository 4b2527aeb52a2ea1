"""What the figures mean, in words: pure functions from a `Snapshot` to sentences with a level.

A level always comes with its words, so that nobody has to know a colour.
"""

from dataclasses import dataclass
from typing import Literal

from .snapshot import Account, Snapshot
from .wording import count, money, plural, span

__all__ = [
    "KINDS",
    "Health",
    "KindAdvice",
    "advice_for",
    "check_of",
    "group_health",
    "rebuild_denied",
    "rebuild_sentence",
    "state_of",
]

Level = Literal["idle", "busy", "good", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Health:
    """A verdict: a level, its word, and a sentence that says why."""

    level: Level
    word: str
    sentence: str


@dataclass(frozen=True, slots=True)
class KindAdvice:
    """What a kind of dead letter means, what it does to its household, and what mends it."""

    meaning: str
    effect: str
    remedy: str


KINDS = {
    "InvalidQuantity": KindAdvice(
        "A line of the order asks for less than one unit.",
        "Dead at once. Later orders of the household go on.",
        "It can never succeed: archive it with a reason.",
    ),
    "UnknownProduct": KindAdvice(
        "The catalogue lacks a product that the order names, as after a faulty import.",
        "Dead at once. Later orders of the household are parked behind it, in order.",
        "Correct the catalogue, then replay: the order and those parked behind it follow in order.",
    ),
    "OutOfStock": KindAdvice(
        "A line asks for more units than are in stock.",
        "Retried, then dead. Later orders of the household are parked behind it, in order.",
        "Restock, then replay: the order and those parked behind it follow in order.",
    ),
}


def advice_for(kind: str) -> KindAdvice:
    """The shop's own kinds by name; anything else is a fault that nobody expected."""
    unexpected = KindAdvice(
        "A fault that the shop's rules do not name.",
        "Retried, then dead. Later orders of the household are parked behind it.",
        "Read the message, mend the cause, then replay.",
    )
    return KINDS.get(kind, unexpected)


def state_of(snapshot: Snapshot) -> Health:
    """The headline: what the whole flow is doing."""
    groups = snapshot.groups.values()
    if snapshot.rebuild.state == "running":
        return Health("busy", "Rebuilding", "All totals are being counted again from the log.")
    if not snapshot.published:
        return Health(
            "idle", "Waiting", "No order has been published yet. This page fills by itself."
        )
    if snapshot.publishing:
        return Health(
            "busy", "Publishing", "Orders arrive, and every group handles them at its own pace."
        )
    remaining = max((group.open for group in groups), default=0)
    if remaining:
        return Health(
            "busy", "Handling", f"All orders are published; {plural(remaining, 'order')} to go."
        )
    dead = sum(group.dead for group in groups)
    groups_passed = plural(len(snapshot.groups), "group")
    everything = f"{plural(snapshot.published, 'order')} went through {groups_passed}"
    if dead:
        need = "dead letter needs a person" if dead == 1 else "dead letters need a person"
        return Health("warn", "Finished", f"{everything}; {count(dead)} {need}.")
    return Health("good", "Finished", f"{everything}; nothing is left to do.")


def group_health(account: Account) -> Health:
    """How one group fares."""
    if account.lost:
        return Health(
            "bad",
            "Lost events",
            f"{plural(account.lost, 'order')} left the log before they were handled",
        )
    if account.open:
        return Health("busy", "Working", f"{count(account.open)} to go")
    if account.parked:
        return Health(
            "warn",
            "Needs a person",
            f"{count(account.parked)} parked, {plural(account.dead, 'dead letter')}",
        )
    if account.dead:
        return Health("warn", "Needs a person", f"{plural(account.dead, 'dead letter')}")
    if account.entered:
        return Health("good", "All settled", "nothing to go")
    return Health("idle", "Idle", "nothing arrived yet")


def check_of(snapshot: Snapshot) -> Health:
    """Do the totals equal the log? Said only when the two counts speak of the same moment."""
    log, totals = snapshot.log, snapshot.totals
    if log is None:
        return Health("idle", "Not counted", "The log has not been counted yet.")
    orders_apart = log.orders - totals.orders
    cents_apart = log.revenue_cents - totals.revenue_cents
    analytics = snapshot.groups.get("analytics", Account())
    if not log.orders and not totals.orders:
        return Health("idle", "Nothing yet", "There is no order to compare.")
    if not orders_apart and not cents_apart:
        return Health("good", "Equal", "Both counts agree, to the cent.")
    if analytics.open or log.orders < snapshot.published:
        if orders_apart >= 0:
            return Health(
                "busy",
                "Catching up",
                f"Analytics is {plural(orders_apart, 'order')} behind the log.",
            )
        return Health(
            "busy", "Counting", f"The count of the log is {plural(-orders_apart, 'order')} behind."
        )
    by = f"{plural(abs(orders_apart), 'order')} and {money(abs(cents_apart))}"
    return Health("bad", "Differs", f"They differ by {by}. A rebuild counts again from the log.")


def rebuild_denied(snapshot: Snapshot) -> str:
    """Why the button is disabled, empty when it is not: it stays visible, with its reason."""
    if snapshot.rebuild.state == "running":
        return "A rebuild is running."
    if not snapshot.published:
        return "There is nothing to count yet."
    return ""


def rebuild_sentence(snapshot: Snapshot) -> str:
    """How the latest rebuild went."""
    rebuild = snapshot.rebuild
    counted, total = count(rebuild.done), plural(rebuild.total, "order")
    match rebuild.state:
        case "never":
            return (
                "Counts every order of the log again and replaces the totals in one step. "
                "No other group notices."
            )
        case "running":
            so_far = f"{counted} of {total} counted again, {span(rebuild.lasted_s)}"
            return f"{so_far}. The totals go on until it replaces them."
        case "finished":
            return f"The last rebuild counted {total} again in {span(rebuild.lasted_s)}."
        case "interrupted":
            at = f"{counted} of {total}"
            return f"The last rebuild was interrupted at {at}. The totals are as they were."
