"""The report of a run, and whether its accounts balance.

Every figure comes from where it is kept: the groups' accounts from the framework, the stock, the
mails and the totals from their own databases, and the log's totals from reading the log once more,
event by event. So a figure that went wrong anywhere stands against another that did not.
"""

import resource
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from eventlane import Status

from .events import OrderCreated
from .flow import Flow
from .recover import Recovered, open_letters

__all__ = ["Report", "Timing", "make_report", "outcomes", "unbalanced"]

GROUPS = ("inventory", "notification", "analytics")
STATES = (
    *("done", "waiting", "in_flight", "held", "parked"),
    *("dead", "archived", "skipped", "edited", "lost"),
)
KINDS = ("InvalidQuantity", "UnknownProduct", "OutOfStock")

Report = dict[str, Any]
"""JSON: its shape is a contract of the demonstration."""


class Timing(msgspec.Struct, kw_only=True):
    """How long publishing took, and then handling until nothing was left; and what was done."""

    publish_s: float = 0.0
    published: int = 0
    drain_s: float = 0.0
    drained: int = 0
    """Deliveries (an order for one group) with an outcome only after all was published."""


async def make_report(flow: Flow, *, timing: Timing, recovered: Recovered) -> Report:
    """Return the report. The flow must be quiet."""
    status = await flow.app.status()
    log_orders, log_revenue_cents = await _count_log(flow)
    kinds = Counter(
        [letter.error_class async for page in open_letters(flow.app) for letter in page]
    )
    orders_applied, units = flow.inventory.applied()
    mails_accepted, orders_mailed = flow.mails.counts()
    totals = flow.analytics.totals()
    return {
        "input": {"lines": flow.run.lines, "orders": flow.run.orders},
        "published": status.topics["orders"].published,
        "groups": {
            group: {state: getattr(status.groups[group], state) for state in STATES}
            for group in GROUPS
        },
        "inventory": {
            "orders_applied": orders_applied,
            "units": units,
            "dead_by_kind": {**dict.fromkeys(KINDS, 0), **kinds},
        },
        "notification": {"mails_accepted": mails_accepted, "orders_mailed": orders_mailed},
        "analytics": {
            "orders": totals.orders,
            "revenue": _money(totals.revenue_cents),
            "log_orders": log_orders,
            "log_revenue": _money(log_revenue_cents),
        },
        "recovered": {
            "replayed": recovered.replayed,
            "resolved": recovered.resolved,
            "archived": recovered.archived,
            "rounds": recovered.rounds,
        },
        "seconds": {"publish": round(timing.publish_s, 3), "drain": round(timing.drain_s, 3)},
        "events_per_second": {
            "publish": _per_second(timing.published, timing.publish_s),
            "drain": _per_second(timing.drained, timing.drain_s),
        },
        "rss_mb_max": round(_rss_mb_max(flow), 1),
    }


def unbalanced(report: Report, flow: Flow) -> list[str]:
    """Return a sentence for every account of the report that does not balance."""
    published = report["published"]
    groups, stock = report["groups"], report["inventory"]
    mails, totals = report["notification"], report["analytics"]
    dead = sum(stock["dead_by_kind"].values())
    taken, smallest = flow.inventory.taken()
    pairs = [
        ("published", published, "orders of the run", report["input"]["orders"]),
        ("orders applied", stock["orders_applied"], "inventory: done", groups["inventory"]["done"]),
        ("units applied", stock["units"], "units taken from the stock", taken),
        ("dead by kind, in all", dead, "inventory: dead", groups["inventory"]["dead"]),
        ("orders mailed", mails["orders_mailed"], "notified", groups["notification"]["done"]),
        ("orders counted", totals["orders"], "analytics: done", groups["analytics"]["done"]),
        ("orders counted", totals["orders"], "orders on the log", totals["log_orders"]),
        ("revenue counted", totals["revenue"], "revenue on the log", totals["log_revenue"]),
        ("orders on the log", totals["log_orders"], "published", published),
    ]
    for name, account in groups.items():
        still_open = sum(account[state] for state in ("waiting", "in_flight", "held"))
        pairs += [
            (f"{name}: all states together", sum(account.values()), "published", published),
            (f"{name}: waiting, in flight or held", still_open, "those of a quiet flow", 0),
            (f"{name}: lost", account["lost"], "those of a whole log", 0),
        ]
    problems = [
        f"{left} = {got}, expected {right} = {want}"
        for left, got, right, want in pairs
        if got != want
    ]
    if smallest < 0:
        problems.append(f"the smallest stock of a product = {smallest}, expected 0 or more")
    if mails["mails_accepted"] < mails["orders_mailed"]:
        problems.append("fewer mails accepted than orders mailed, expected at least as many")
    if not flow.analytics.agrees():
        problems.append("totals by hour or department do not add up, expected those of all orders")
    return problems


def outcomes(status: Status) -> int:
    """Return how many deliveries have an outcome, or wait behind one that has."""
    return sum(account.entered - account.open for account in status.groups.values())


async def _count_log(flow: Flow) -> tuple[int, int]:
    orders = revenue_cents = 0
    async for message in flow.app.read(OrderCreated, start="first"):
        orders += 1
        revenue_cents += flow.app.decode(message, OrderCreated).revenue_cents
    return orders, revenue_cents


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _per_second(count: int, elapsed_s: float) -> float:
    return round(count / elapsed_s, 1) if elapsed_s > 0 else 0.0


def _rss_mb_max(flow: Flow) -> float:
    """Return the largest resident size that this process or its mail server ever had.

    From /proc where there is one, since the `ru_maxrss` of a new process begins with the size of
    the one that started it. On macOS the mail server is left out: it cannot be asked, and is the
    smaller by far.
    """
    pids = ["self"] if flow.smtp.pid is None else ["self", str(flow.smtp.pid)]
    peaks = [
        int(line.split()[1]) * 1024
        for pid in pids
        if (status := Path(f"/proc/{pid}/status")).exists()
        for line in status.read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e6
