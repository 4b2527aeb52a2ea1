"""A type that only a dead member had a handler for: its events wait, until it is forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, NotFound, event
from eventlane.brokers import connect
from eventlane.cli import main
from eventlane.testing.stage import spec, until


@event(topic="orders", key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str


@event(topic="orders", key="customer")
class Paid(msgspec.Struct, frozen=True):
    customer: str


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[App]:
    """Handles `Ordered`; a member that has handled `Paid` too was killed."""
    shop = App(f"embedded:{tmp_path}", name="shop", durability="os", partitions=1)

    @shop.subscribe(Ordered, group="stock")
    async def handle(ordered: Ordered, ctx: Context) -> None:
        pass

    async with shop, shop.handling():
        other: Any = await connect(shop.url)
        types = (("orders", "Paid"), ("orders", "Ordered"))
        killed = await other.join(spec("stock", app="shop", topics=("orders",), types=types))
        # Its lock is free, and what it has written stays: as after kill -9.
        other._members.leave(killed._member)
        killed.has_left = True
        await shop.publish(Paid("ada"))
        await shop.publish(Ordered("ada"))
        await until(lambda: is_waiting(shop), "the partition to wait")
        yield shop
        await other.aclose()


async def is_waiting(shop: App) -> bool:
    group = (await shop.status()).groups["stock"]
    return group.partitions[0].waits_for == "Paid"


async def test_what_waits_for_a_handler_is_said_and_goes_on_when_its_type_is_forgotten(
    shop: App,
) -> None:
    group = (await shop.status()).groups["stock"]
    assert (group.skipped, group.open) == (0, 2)
    assert "orders[0] waits for a member with a handler for 'Paid'" in group.blocked[0]
    await shop.forget_type("stock", "Paid", reason="no longer sent", actor="me")

    async def has_gone_on() -> bool:
        now = (await shop.status()).groups["stock"]
        return (now.done, now.skipped, now.blocked) == (1, 1, ())

    await until(has_gone_on, "the partition to go on")
    with pytest.raises(NotFound, match="expected an event type that it is recorded to handle"):
        await shop.forget_type("stock", "Paid", reason="again")


async def test_a_key_says_that_it_waits_for_a_handler(
    shop: App, capsys: pytest.CaptureFixture[str]
) -> None:
    (view,) = await shop.lane("orders", "ada")
    assert view.waits_for == "Paid"
    assert "its next event, at offset 0, waits;" in view.why
    assert "; orders[0] waits for a member with a handler for 'Paid'" in view.why
    place = ["--broker", shop.url, "lane", "orders", "ada"]
    assert await asyncio.to_thread(main, place) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "waits for a member with a handler for 'Paid'" in out
    assert "groups forget stock Paid" in out


async def test_an_app_is_idle_while_only_that_waits(shop: App) -> None:
    again = shop.replace(url=shop.url)
    async with again:
        await again.run_until_idle(timeout_s=10)
    assert await is_waiting(shop)


async def test_a_live_member_with_a_handler_ends_the_waiting(shop: App) -> None:
    new = shop.replace(url=shop.url)

    async def handle(event: Ordered | Paid, ctx: Context) -> None:
        pass

    new.subscribe(Paid, group="stock")(handle)

    async def is_done() -> bool:
        return (await shop.status()).groups["stock"].done == 2

    async with new, new.handling():
        await until(is_done, "both to be handled")


async def test_the_command_line_says_it_and_forgets(
    shop: App, capsys: pytest.CaptureFixture[str]
) -> None:

    async def run(*arguments: str) -> int:
        return await asyncio.to_thread(main, ["--broker", shop.url, *arguments])

    assert await run("status") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "stock is blocked: orders[0] waits for a member with a handler for 'Paid'" in out
    assert "groups forget stock Paid" in out
    because = ("--reason", "no longer sent")
    assert await run("groups", "forget", "stock", "Ordered", *because) == 3
    assert "'Ordered', which process" in capsys.readouterr().err
    assert await run("groups", "forget", "stock", "Paid", *because, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stock"]["members"] == 1
