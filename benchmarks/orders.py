"""The event that all benchmarks use: six fields, some 110 bytes as JSON, keyed by customer."""

import msgspec

from eventlane import event

__all__ = ["Order", "orders"]


@event(topic="orders", key="customer")
class Order(msgspec.Struct):
    """An order."""

    order_id: str
    customer: str
    sku: str
    quantity: int
    amount: float
    placed_ms: int


def orders(count: int) -> list[Order]:
    """So many orders of a thousand customers."""
    return [
        Order(
            f"o-{number}",
            f"c-{number % 1000}",
            f"sku-{number % 97}",
            number % 7,
            number * 0.5,
            1_700_000_000_000 + number,
        )
        for number in range(count)
    ]
