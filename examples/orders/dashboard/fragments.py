"""The pieces of the page that change, each on its own, for the first load and the stream alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import charts, health, wording
from .snapshot import Account, Department, Snapshot, Totals

__all__ = [
    "FRAGMENTS",
    "LETTERS_MAX",
    "Reading",
    "environment",
    "fragments_of",
    "kind_fragments_of",
]

FRAGMENTS = (
    "state",
    "figures",
    "orders",
    "revenue",
    "departments",
    "groups",
    "dead",
    "check",
    "rebuild",
    "action",
)
DEPARTMENTS_MAX = 15
LETTERS_MAX = 50
PURPOSES = {
    "inventory": "takes from the stock",
    "notification": "mails the household",
    "analytics": "counts for this page",
}
"""The flow's groups in the order in which they are shown; others come after them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The latest snapshot, and why there is no newer one, if there should be."""

    snapshot: Snapshot
    trouble: str = ""


def environment(folder: Path) -> Environment:
    """Templates that escape by default and refuse a name that nobody set."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "money", "percent", "plural", "rate", "span", "clock_time", "moment"):
        made.filters[name] = getattr(wording, name)
    made.globals.update(
        account_bar=charts.account_bar,
        progress_bar=charts.progress_bar,
        sparkline=charts.sparkline,
        advice_for=health.advice_for,
        group_health=health.group_health,
        purposes=PURPOSES,
        no_account=Account(),
    )
    return made


def fragments_of(templates: Environment, reading: Reading) -> dict[str, str]:
    """Every fragment of the front page by its name."""
    snapshot = reading.snapshot
    totals = snapshot.totals
    growing = bool(snapshot.publishing or snapshot.groups.get("analytics", Account()).open)
    named, others = leading_departments(totals.departments)
    values: Mapping[str, object] = {
        "now": snapshot,
        "groups": _in_order(snapshot.groups),
        "trouble": reading.trouble,
        "health": health.state_of(snapshot),
        "check": health.check_of(snapshot),
        "rebuild_sentence": health.rebuild_sentence(snapshot),
        "denied": health.rebuild_denied(snapshot),
        "departments": named,
        "others": others,
        "spark_end": -1 if growing and len(totals.buckets) > 1 else None,
        "orders_chart": _orders_chart(totals, growing),
        "revenue_chart": _revenue_chart(totals, growing),
        "span_words": wording.range_of(totals.buckets[0].start, totals.buckets[-1].start)
        if totals.buckets
        else "",
        "busiest": _busiest(totals),
    }
    return {
        name: templates.get_template(f"fragments/{name}.html").render(values) for name in FRAGMENTS
    }


def kind_fragments_of(templates: Environment, reading: Reading, kind: str) -> dict[str, str]:
    """The one moving line of a kind's page: the list itself stays still under the reader's eyes."""
    here = [each for each in reading.snapshot.kinds if each.name == kind]
    values = {
        "kind_count": here[0].count if here else 0,
        "now": reading.snapshot,
        "trouble": reading.trouble,
    }
    return {"kind": templates.get_template("fragments/kind.html").render(values)}


def leading_departments(
    departments: Sequence[Department],
) -> tuple[list[Department], list[Department]]:
    """Those with most revenue, and the rest; a rest of one is no rest."""
    ranked = sorted(departments, key=lambda each: (-each.revenue_cents, each.name))
    cut = len(ranked) if len(ranked) <= DEPARTMENTS_MAX + 1 else DEPARTMENTS_MAX
    return ranked[:cut], ranked[cut:]


def _in_order(groups: Mapping[str, Account]) -> list[tuple[str, Account]]:
    names = [*(name for name in PURPOSES if name in groups), *sorted(groups.keys() - PURPOSES)]
    return [(name, groups[name]) for name in names]


def _orders_chart(totals: Totals, growing: bool) -> str:
    return charts.columns(
        totals.buckets,
        totals.size,
        lambda bucket: bucket.orders,
        label=f"Orders per {totals.size}, {wording.count(totals.orders)} in all",
        axis=wording.count,
        exact=lambda orders: wording.plural(orders, "order"),
        still_growing=growing,
    )


def _revenue_chart(totals: Totals, growing: bool) -> str:
    return charts.columns(
        totals.buckets,
        totals.size,
        lambda bucket: bucket.revenue_cents,
        label=f"Revenue per {totals.size}, {wording.money(totals.revenue_cents)} in all",
        axis=wording.money_axis,
        exact=wording.money,
        still_growing=growing,
    )


def _busiest(totals: Totals) -> str:
    if len(totals.buckets) < 2:
        return ""
    peak = max(totals.buckets, key=lambda bucket: bucket.orders)
    return f"busiest {wording.title(peak.start, totals.size)}"
