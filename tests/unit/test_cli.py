"""The command line, as an operator uses it: each test runs the real commands on a real broker."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, Context, Retry, event
from eventlane.cli import main


@event(topic="orders", key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str
    quantity: int


class Shop:
    """An app whose handler refuses quantities below 1 until it is mended."""

    def __init__(self, directory: Path) -> None:
        self.is_mended = False
        self.handled: list[Ordered] = []
        self.url = f"embedded:{directory}"
        self.app = App(self.url)
        self.app.subscribe(Ordered, group="stock", retry=Retry(attempts=1))(self.handle)

    async def handle(self, ordered: Ordered, ctx: Context) -> None:
        if ordered.quantity < 1 and not self.is_mended:
            raise ValueError("no quantity")
        self.handled.append(ordered)

    async def handle_all(self, *events: Ordered) -> None:
        async with self.app:
            await self.app.publish_many(events)
            await self.app.run_until_idle(timeout_s=20)


def run(shop: Shop, *arguments: str) -> int:
    return main(["--broker", shop.url, *arguments])


def printed(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(shop, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 1), Ordered("bob", 0), Ordered("bob", 2))
    return shop


def test_status_says_where_every_event_is(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    stock = printed(shop, capsys, "status")["groups"]["stock"]
    assert (stock["done"], stock["dead"], stock["parked"]) == (1, 1, 1)
    assert run(shop, "status") == 0
    assert "stock" in capsys.readouterr().out


def test_topics_are_listed_with_their_size(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(shop, capsys, "topics")["orders"]["published"] == 3


def test_a_failure_is_found_shown_and_replayed_to_its_group(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (letter,) = printed(shop, capsys, "failures", "list")
    assert (letter["key"], letter["error_message"]) == ("bob", "no quantity")
    assert run(shop, "failures", "show", letter["id"]) == 0
    assert "Traceback" in capsys.readouterr().out
    assert run(shop, "replay", letter["id"], "--reason", "mended") == 0
    capsys.readouterr()
    assert printed(shop, capsys, "status")["groups"]["stock"]["pending"] == 1


async def test_what_was_replayed_is_handled_in_order_by_the_next_run(shop: Shop) -> None:
    (letter,) = await letters(shop)
    shop.is_mended = True
    await in_thread(shop, "replay", str(letter.id), "--reason", "mended")
    await shop.handle_all()
    assert shop.handled[-2:] == [Ordered("bob", 0), Ordered("bob", 2)]


async def test_archiving_opens_the_lane(shop: Shop) -> None:
    (letter,) = await letters(shop)
    assert await in_thread(shop, "archive", str(letter.id), "--reason", "a test order") == 0
    await shop.handle_all()
    assert shop.handled[-1] == Ordered("bob", 2)
    # A second operator is refused, and told why.
    assert await in_thread(shop, "archive", str(letter.id), "--reason", "again") == 3


def test_tail_prints_messages(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "tail", "orders", "--no-follow") == 0
    assert capsys.readouterr().out.count("Ordered") == 3


def test_a_group_is_paused_and_goes_on(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "groups", "pause", "stock", "--reason", "stocktaking") == 0
    capsys.readouterr()
    assert printed(shop, capsys, "groups", "list")["stock"]["paused"] == "stocktaking"
    assert run(shop, "groups", "resume", "stock") == 0
    capsys.readouterr()
    assert printed(shop, capsys, "groups", "list")["stock"]["paused"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status"], 2, "expected a broker"),
        (["--broker", "embeded:x", "status"], 2, "Did you mean 'embedded'"),
        (["--broker", "embedded:nowhere", "status"], 2, "expected a directory with a broker"),
        (["--app", "nowhere:app", "status"], 2, "expected a module"),
        (["--app", "json", "status"], 2, "expected MODULE:APP"),
        (["--app", "json:dumps", "status"], 2, "expected an eventlane.App"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    *,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("EVENTLANE_BROKER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "looking must not make a broker"


def test_an_id_that_is_none_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "replay", "abc", "--reason", "x") == 2
    assert run(shop, "failures", "show", "00000000-0000-0000-0000-000000000000") == 3
    assert "failures list" in capsys.readouterr().err


async def letters(shop: Shop) -> Any:
    async with shop.app:
        return await shop.app.dead_letters()


async def in_thread(shop: Shop, *arguments: str) -> int:
    """A command has an event loop of its own."""
    return await asyncio.to_thread(run, shop, *arguments)
