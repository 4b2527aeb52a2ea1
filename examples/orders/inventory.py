"""The stock, in a database of its own, and the rules by which an order may take from it.

In this order: a line with a quantity below 1 is an `InvalidQuantity`; a product that the catalogue
lacks is an `UnknownProduct`; a line that asks for more than is there is `OutOfStock`. Otherwise the
stock of each line's product falls by its quantity, for all lines of the order or for none.

Deliveries are at least once. The event's id is written with the stock in one transaction, so an
order that comes again is recognised and takes nothing.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path
from uuid import UUID

from eventlane import Context, Dead, Retry

from .database import Database, WorkRefused
from .events import OrderCreated

__all__ = [
    "INVENTORY_RETRY",
    "InvalidQuantity",
    "Inventory",
    "OrderRefused",
    "OutOfStock",
    "UnknownProduct",
    "survives_import",
]

SCHEMA = """
-- A row for every product that this run's orders name. demand: its units in the orders without an
-- invalid line; received: units that ever came in; on_hand: those that are still there.
CREATE TABLE IF NOT EXISTS stock (
    product_id INTEGER PRIMARY KEY, demand INTEGER NOT NULL, received INTEGER NOT NULL,
    on_hand INTEGER NOT NULL CHECK (on_hand >= 0)
);
CREATE TABLE IF NOT EXISTS catalogue (product_id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS applied (
    event_id BLOB PRIMARY KEY, order_id INTEGER NOT NULL, units INTEGER NOT NULL
) WITHOUT ROWID;
"""


class OrderRefused(WorkRefused):
    """The inventory cannot apply an order. Nothing of it was applied."""


class InvalidQuantity(OrderRefused):
    """A line asks for less than one unit. No retry can mend that."""


class UnknownProduct(OrderRefused):
    """A line names a product that the catalogue lacks, until somebody corrects the catalogue."""


class OutOfStock(OrderRefused):
    """A line asks for more than is there, until new stock comes in."""


INVENTORY_RETRY = Retry(
    attempts=4,
    delay_s=0.2,
    factor=2,
    rules=(
        # The order itself is wrong and stays wrong: the household's next orders need not wait.
        (InvalidQuantity, Dead(lane="continue")),
        # The order is right, the catalogue is wrong: the household's next orders wait their turn.
        (UnknownProduct, Dead(lane="park")),
    ),
)
"""Short delays, so that a demonstration shows in seconds what would take minutes in earnest."""


def survives_import(product_id: int) -> bool:
    """Tell whether a product got into the catalogue: a faulty import lost one in 2,000 of them."""
    return zlib.crc32(str(product_id).encode()) % 2000 != 0


class Inventory:
    """Stock and catalogue: what handles events of the group `inventory`, and what staff may do."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, SCHEMA)

    async def close(self) -> None:
        """Close the database after the writes that are under way."""
        await self._database.close()

    def is_stocked(self) -> bool:
        """Tell whether `stock_up` was ever done here."""
        return bool(self._database.query("SELECT 1 FROM catalogue LIMIT 1"))

    async def stock_up(
        self, demand: Mapping[int, int], share: Decimal, catalogue: Iterable[int]
    ) -> None:
        """Fill an empty inventory: ⌈share × demand⌉ of each product, and the catalogue.

        Durability: all of it or nothing is on the disk, so a process that dies in between starts
        from nothing.
        """
        exact_share = Fraction(share)

        def fill(connection: sqlite3.Connection) -> None:
            rows = (
                (product, units, ceil(exact_share * units)) for product, units in demand.items()
            )
            connection.executemany("INSERT INTO stock VALUES (?1, ?2, ?3, ?3)", rows)
            connection.executemany(
                "INSERT INTO catalogue VALUES (?)", ((product,) for product in catalogue)
            )

        await self._database.write(fill)

    async def reserve(self, order: OrderCreated, context: Context) -> None:
        """Handle an order: take its lines from the stock, once, however often it is delivered.

        Raises:
            InvalidQuantity, UnknownProduct, OutOfStock: the order is refused and nothing has
            happened.
        """
        await self.apply(context.event_id, order)

    async def apply(self, event_id: UUID, order: OrderCreated) -> None:
        """Do what `reserve` says, for an event with this id."""
        await self._database.write(lambda connection: _take(connection, event_id.bytes, order))

    async def correct_catalogue(self) -> int:
        """Add all products that this run's orders name, and return how many were missing."""
        statement = "INSERT OR IGNORE INTO catalogue SELECT product_id FROM stock"
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def restock(self) -> int:
        """Bring in what this run's orders need beyond what ever came in; return those units."""

        def fill_up(connection: sqlite3.Connection) -> int:
            (missing,) = connection.execute(
                "SELECT IFNULL(SUM(MAX(demand - received, 0)), 0) FROM stock"
            ).fetchone()
            connection.execute(
                "UPDATE stock SET on_hand = on_hand + demand - received, received = demand"
                " WHERE received < demand"
            )
            return int(missing)

        return await self._database.write(fill_up)

    def applied(self) -> tuple[int, int]:
        """Return how many orders were applied, and their units."""
        ((orders, units),) = self._database.query(
            "SELECT COUNT(*), IFNULL(SUM(units), 0) FROM applied"
        )
        return orders, units

    def taken(self) -> tuple[int, int]:
        """Return how many units left the stock, and the smallest stock of any product."""
        ((units, smallest),) = self._database.query(
            "SELECT IFNULL(SUM(received - on_hand), 0), IFNULL(MIN(on_hand), 0) FROM stock"
        )
        return units, smallest


def _take(connection: sqlite3.Connection, event_id: bytes, order: OrderCreated) -> None:
    if connection.execute("SELECT 1 FROM applied WHERE event_id = ?", (event_id,)).fetchone():
        return
    for line in order.lines:
        if line.quantity < 1:
            raise InvalidQuantity(
                f"product {line.product_id}: expected a quantity of 1 or more, got "
                f"{line.quantity}; archive this order"
            )
    for line in order.lines:
        if not connection.execute(
            "SELECT 1 FROM catalogue WHERE product_id = ?", (line.product_id,)
        ).fetchone():
            raise UnknownProduct(
                f"product {line.product_id}: expected it in the catalogue, which lacks it; "
                "correct the catalogue, then replay this order"
            )
    for line in order.lines:
        taken = connection.execute(
            "UPDATE stock SET on_hand = on_hand - ?1 WHERE product_id = ?2 AND on_hand >= ?1",
            (line.quantity, line.product_id),
        )
        if taken.rowcount == 0:
            raise OutOfStock(
                f"product {line.product_id}: expected {line.quantity} in stock, which has fewer; "
                "restock, then replay this order"
            )
    units = sum(line.quantity for line in order.lines)
    connection.execute("INSERT INTO applied VALUES (?, ?, ?)", (event_id, order.order_id, units))
