"""The app that test_rolling.py has served in two versions: the second handles one type more."""

import os
from pathlib import Path

import msgspec

from eventlane import App, Context, Limits, Topic, event

PLACE = Path(os.environ.get("SERVED_PLACE", "nowhere"))
"""A directory: `version` says which one this is."""
GROUP = "work"
ORDERS = Topic("orders", partitions=4)


@event(topic=ORDERS, key="key")
class Placed(msgspec.Struct, frozen=True):
    key: str
    number: int


@event(topic=ORDERS, key="key")
class Paid(msgspec.Struct, frozen=True):
    key: str
    number: int


@event(topic=ORDERS, key="key")
class Shipped(msgspec.Struct, frozen=True):
    """What the first version does not know."""

    key: str
    number: int


def made_app(place: Path, version: str) -> App:
    app = App(
        f"embedded:{place}/data",
        version=version,
        durability="os",
        limits=Limits(drain_s=10),
    )

    async def work(done: Placed | Paid | Shipped, _ctx: Context) -> None:
        what = f"{version}:{type(done).__name__}:{done.key}"
        os.write(1, f"{what} {done.number} {os.getpid()}\n".encode())

    app.subscribe(Placed, Paid, group=GROUP)(work)
    if version == "2":
        app.subscribe(Shipped, group=GROUP)(work)
    return app


if (PLACE / "version").exists():
    app = made_app(PLACE, (PLACE / "version").read_text())
