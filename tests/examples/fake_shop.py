"""An invented shop for the dashboard's tests: its figures grow only when a test says so."""

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from examples.orders.dashboard import (
    Account,
    Bucket,
    Department,
    Kind,
    Letter,
    LogCount,
    Rebuild,
    Snapshot,
    SourceUnavailable,
    Totals,
)
from examples.orders.dashboard.snapshot import bucket_size, bucket_start, bucket_starts

__all__ = ["FakeShop"]

FIRST_ORDER = datetime.fromisoformat("2017-01-01T11:53:26")  # the shop's own time, without a zone
ORDERS_PER_DAY = 427
WALL_START = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
BUSY_HOURS = (8, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 6, 8, 10, 10, 11, 12, 13, 15, 15, 13)
DEPARTMENTS = {
    "GROCERY": 2316, "DRUG GM": 597, "FUEL": 330, "PRODUCE": 323, "MEAT": 309, "MEAT-PCKGD": 232,
    "DELI": 148, "MISCELLANEOUS": 79, "PASTRY": 69, "NUTRITION": 57, "SEAFOOD-PCKGD": 36,
    "FLORAL": 22, "COSMETICS": 19, "SALAD BAR": 18, "SEAFOOD": 17, "SPIRITS": 12,
    "GARDEN CENTER": 5, "CHEF SHOPPE": 2, "TRAVEL & LEISURE": 1,
}  # fmt: skip
MESSAGES = {
    "InvalidQuantity": "order {order}: line {line} asks for {quantity} units, expected at least 1",
    "UnknownProduct": "order {order}: product {product} is not in the catalogue",
    "OutOfStock": "order {order}: asks for {quantity} units of {product}, in stock are {stock}",
}
KIND_SHARES = {"InvalidQuantity": 0.042, "UnknownProduct": 0.003, "OutOfStock": 0.006}


class FakeShop:
    """A `DashboardSource` whose clock and orders advance by `advance`."""

    def __init__(self, *, expected: int = 20_000, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._expected = expected
        self._published = self._counted = 0
        self._now = WALL_START
        self._latest = FIRST_ORDER
        self._orders: Counter[datetime] = Counter()
        self._revenue: Counter[datetime] = Counter()
        self._departments: Counter[tuple[str, datetime]] = Counter()
        self._department_orders: Counter[str] = Counter()
        self._letters: dict[str, list[Letter]] = {}
        self._rate = 0.0
        self._totals_of = (0, 0)
        self._last_totals = Totals()
        self.rebuild_state = Rebuild()
        self.trouble = ""
        self.log_is_off_by = 0
        self.rebuilds_asked = 0

    def advance(self, orders: int, *, backlog: int = 0, passed_s: float = 0.5) -> None:
        """Publish `orders` more; analytics has counted all but `backlog` of what is published."""
        orders = min(orders, self._expected - self._published)
        for _ in range(orders):
            self._add_order()
        self._published += orders
        self._counted = max(0, self._published - backlog)
        self._now += timedelta(seconds=passed_s)
        self._rate = orders / passed_s

    def _add_order(self) -> None:
        pace = BUSY_HOURS[self._latest.hour] / 6.2
        self._latest += timedelta(seconds=self._random.expovariate(ORDERS_PER_DAY * pace / 86_400))
        hour = bucket_start(self._latest, "hour")
        self._orders[hour] += 1
        line_count = 1 + int(self._random.expovariate(0.5))
        bought = self._random.choices(list(DEPARTMENTS), list(DEPARTMENTS.values()), k=line_count)
        for name in sorted(set(bought)):
            cents = 80 + int(self._random.expovariate(1 / 1_300))
            self._revenue[hour] += cents
            self._departments[name, hour] += cents
            self._department_orders[name] += 1
        for kind, share in KIND_SHARES.items():
            if self._random.random() < share:
                self.fail(kind)

    def fail(self, kind: str, message: str | None = None) -> Letter:
        """Add one dead letter."""
        letters = self._letters.setdefault(kind, [])
        values = {
            "order": self._random.randrange(31_198_000_000, 31_999_000_000),
            "product": self._random.randrange(25_000, 18_000_000),
            "quantity": 0 if kind == "InvalidQuantity" else self._random.randrange(2, 24),
            "line": self._random.randrange(1, 30),
            "stock": self._random.randrange(0, 2),
        }
        letter = Letter(
            id=f"019a{self._random.getrandbits(32):08x}",
            household=str(self._random.randrange(1, 2_470)),
            order_id=str(values["order"]),
            attempts=5 if kind == "OutOfStock" else 1,
            message=message or MESSAGES[kind].format(**values),
            failed_at=self._now,
            parked_behind=0 if kind == "InvalidQuantity" else self._random.randrange(0, 14),
        )
        letters.append(letter)
        return letter

    async def snapshot(self) -> Snapshot:
        if self.trouble:
            raise SourceUnavailable(self.trouble)
        if self._totals_of != (self._published, self._counted):
            self._totals_of = (self._published, self._counted)
            self._last_totals = self._totals()
        totals = self._last_totals
        off = self.log_is_off_by
        return Snapshot(
            as_of=self._now,
            published=self._published,
            expected=self._expected,
            publishing=self._published < self._expected,
            published_per_s=self._rate,
            groups=self._groups() if self._published else {},
            kinds=tuple(
                Kind(name=name, count=len(letters), last_message=letters[-1].message)
                for name, letters in sorted(self._letters.items(), key=lambda item: -len(item[1]))
            ),
            totals=totals,
            log=LogCount(
                orders=self._published + off,
                revenue_cents=sum(self._revenue.values()) + off * 2_950,
                as_of=self._now - timedelta(seconds=1),
            ),
            rebuild=self.rebuild_state,
        )

    def _groups(self) -> dict[str, Account]:
        dead = sum(len(letters) for letters in self._letters.values())
        parked = sum(
            letter.parked_behind for letters in self._letters.values() for letter in letters
        )
        behind = self._published - self._counted
        slow, mails = min(self._published, behind * 2), min(self._published, behind * 5)
        return {
            "inventory": Account(
                done=max(0, self._published - slow - dead - parked),
                waiting=max(0, slow - 112),
                in_flight=min(slow, 100),
                held=max(0, min(slow - 100, 12)),
                parked=parked,
                dead=dead,
                done_per_s=2_134.0,
            ),
            "notification": Account(
                done=self._published - mails,
                waiting=max(0, mails - 105),
                in_flight=min(mails, 100),
                held=max(0, min(mails - 100, 5)),
                done_per_s=817.4,
            ),
            "analytics": Account(
                done=self._counted,
                waiting=max(0, behind - 100),
                in_flight=min(behind, 100),
                done_per_s=self._rate,
            ),
        }

    def _totals(self) -> Totals:
        if not self._orders:
            return Totals()
        size = bucket_size(FIRST_ORDER, self._latest)
        starts = bucket_starts(FIRST_ORDER, self._latest, size)
        orders: Counter[datetime] = Counter()
        revenue: Counter[datetime] = Counter()
        for hour, number in self._orders.items():
            orders[bucket_start(hour, size)] += number
            revenue[bucket_start(hour, size)] += self._revenue[hour]
        by_department: dict[str, Counter[datetime]] = {}
        for (name, hour), cents in self._departments.items():
            by_department.setdefault(name, Counter())[bucket_start(hour, size)] += cents
        return Totals(
            orders=self._counted,
            revenue_cents=sum(revenue.values()) - (self._published - self._counted) * 2_950,
            size=size,
            buckets=tuple(
                Bucket(start=at, orders=orders[at], revenue_cents=revenue[at]) for at in starts
            ),
            departments=tuple(
                Department(
                    name=name,
                    orders=self._department_orders[name],
                    revenue_cents=sum(cents.values()),
                    revenue_by_bucket=tuple(cents[at] for at in starts),
                )
                for name, cents in by_department.items()
            ),
        )

    async def letters(self, kind: str, *, limit: int) -> Sequence[Letter]:
        return self._letters.get(kind, [])[::-1][:limit]

    async def rebuild(self) -> None:
        self.rebuilds_asked += 1
        if self.rebuild_state.state != "running":
            self.rebuild_state = Rebuild(state="running", done=0, total=self._published)
