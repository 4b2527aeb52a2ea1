"""The one business event of the order flow. Everything that happens downstream starts from it."""

from datetime import datetime

import msgspec

from eventlane import event

__all__ = ["OrderCreated", "OrderLine"]


class OrderLine(msgspec.Struct, frozen=True):
    """One product of an order.

    `department` travels with the line, so that totals per department can be rebuilt from the log
    alone, whatever became of the product list since. Money is a whole number of cents: exact in
    JSON, in Avro and in SQL alike.
    """

    product_id: int
    department: str
    quantity: int
    sales_value_cents: int


@event(topic="orders", key="household")
class OrderCreated(msgspec.Struct, frozen=True):
    """A household has bought.

    The key is the household, so its orders are handled in the order in which it bought.
    `placed_at` is when the till printed the receipt (the data has local times without a zone; they
    are read as UTC).
    """

    order_id: int
    household: int
    store_id: int
    placed_at: datetime
    lines: tuple[OrderLine, ...]

    @property
    def revenue_cents(self) -> int:
        """What the household paid for the order."""
        return sum(line.sales_value_cents for line in self.lines)
