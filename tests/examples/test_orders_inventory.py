"""The inventory's business rules, each against a real database."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from examples.orders import source
from examples.orders.events import OrderCreated, OrderLine
from examples.orders.inventory import (
    InvalidQuantity,
    Inventory,
    OutOfStock,
    UnknownProduct,
    survives_import,
)

MILK, BREAD, LOST = 1, 2, 3


def order_of(**quantities: int) -> OrderCreated:
    ids = {"milk": MILK, "bread": BREAD, "lost": LOST}
    return OrderCreated(
        order_id=7,
        household=1,
        store_id=1,
        placed_at=datetime(2017, 1, 1, tzinfo=UTC),
        lines=tuple(OrderLine(ids[name], "GROCERY", n, 100) for name, n in quantities.items()),
    )


def with_inventory(path: Path, scenario: Callable[[Inventory], Coroutine[Any, Any, None]]) -> None:
    """Ten milk and ten breads are there; the third product is not in the catalogue."""

    async def run() -> None:
        stock = Inventory(path / "inventory.db")
        if not stock.is_stocked():
            demand = {MILK: 10, BREAD: 10, LOST: 10}
            await stock.stock_up(demand, Decimal(1), [MILK, BREAD])
        try:
            await scenario(stock)
        finally:
            await stock.close()

    asyncio.run(run())


def test_an_order_takes_its_lines_from_the_stock(tmp_path: Path) -> None:
    async def scenario(stock: Inventory) -> None:
        await stock.apply(uuid4(), order_of(milk=3, bread=1))
        assert stock.applied() == (1, 4)
        assert stock.taken() == (4, 7)

    with_inventory(tmp_path, scenario)


def test_an_order_that_is_delivered_twice_takes_once(tmp_path: Path) -> None:
    event_id = uuid4()

    async def scenario(stock: Inventory) -> None:
        await asyncio.gather(*(stock.apply(event_id, order_of(milk=3)) for _ in range(5)))
        assert stock.applied() == (1, 3)
        assert stock.taken() == (3, 7)

    with_inventory(tmp_path, scenario)
    with_inventory(tmp_path, scenario)  # and after a restart


@pytest.mark.parametrize("quantity", [0, -1])
def test_a_line_of_less_than_one_unit_is_invalid_before_anything_else(
    tmp_path: Path, quantity: int
) -> None:
    async def scenario(stock: Inventory) -> None:
        with pytest.raises(
            InvalidQuantity, match=f"expected a quantity of 1 or more, got {quantity}"
        ):
            await stock.apply(uuid4(), order_of(lost=99, milk=quantity))
        assert stock.taken() == (0, 10)

    with_inventory(tmp_path, scenario)


def test_a_product_that_the_catalogue_lacks_is_unknown_before_it_is_out_of_stock(
    tmp_path: Path,
) -> None:
    async def scenario(stock: Inventory) -> None:
        with pytest.raises(UnknownProduct, match="product 3"):
            await stock.apply(uuid4(), order_of(milk=99, lost=1))
        assert await stock.correct_catalogue() == 1
        assert await stock.correct_catalogue() == 0
        await stock.apply(uuid4(), order_of(milk=9, lost=1))

    with_inventory(tmp_path, scenario)


def test_an_order_that_asks_for_more_than_is_there_takes_none_of_its_lines(tmp_path: Path) -> None:
    async def scenario(stock: Inventory) -> None:
        with pytest.raises(OutOfStock, match="product 2: expected 11 in stock"):
            await stock.apply(uuid4(), order_of(milk=3, bread=11))
        assert stock.taken() == (0, 10)
        assert stock.applied() == (0, 0)

    with_inventory(tmp_path, scenario)


def test_orders_of_one_transaction_do_not_spoil_each_other(tmp_path: Path) -> None:
    async def scenario(stock: Inventory) -> None:
        answers = await asyncio.gather(
            *(stock.apply(uuid4(), order_of(milk=4)) for _ in range(4)),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [
            type(None),
            type(None),
            OutOfStock,
            OutOfStock,
        ]
        assert stock.taken() == (8, 2)

    with_inventory(tmp_path, scenario)


def test_initial_stock_is_the_share_of_the_demand_rounded_up_exactly(tmp_path: Path) -> None:
    async def run() -> None:
        stock = Inventory(tmp_path / "inventory.db")
        await stock.stock_up({MILK: 100, BREAD: 101}, Decimal("0.07"), [MILK, BREAD])
        # 7 and ⌈7.07⌉ = 8; with 0.07 as a float the first would be ⌈7.000000000000001⌉.
        await stock.apply(uuid4(), order_of(milk=7, bread=8))
        assert stock.taken() == (15, 0)
        assert await stock.restock() == 93 + 93
        assert await stock.restock() == 0
        await stock.apply(uuid4(), order_of(milk=93, bread=93))
        assert stock.taken() == (201, 0)
        await stock.close()

    asyncio.run(run())


def test_an_error_in_the_database_reaches_every_order_that_it_concerns(tmp_path: Path) -> None:
    async def scenario(stock: Inventory) -> None:
        await stock._database.write(lambda connection: connection.execute("DROP TABLE applied"))
        answers = await asyncio.gather(
            *(stock.apply(uuid4(), order_of(milk=1)) for _ in range(3)), return_exceptions=True
        )
        assert ["no such table" in str(answer) for answer in answers] == [True] * 3
        assert stock.taken() == (0, 10)

    with_inventory(tmp_path, scenario)


def test_the_faulty_import_lost_58_of_92331_products() -> None:
    products = source.departments()
    assert len(products) == 92_331
    assert sum(not survives_import(product) for product in products) == 58


def test_marks_are_event_ids(tmp_path: Path) -> None:
    event_id = UUID(int=5)

    async def scenario(stock: Inventory) -> None:
        await stock.apply(event_id, order_of(milk=1))
        assert stock._database.query("SELECT event_id FROM applied") == [(event_id.bytes,)]

    with_inventory(tmp_path, scenario)
