"""What is wrong, who is behind, where an event is: the commands that only look."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from eventlane import App, Context, Retry
from eventlane.clock import yield_to_loop
from tests.unit.cli_shop import (
    Ordered,
    Shop,
    Terminal,
    as_json,
    in_thread,
    printed,
    refused,
    run,
)


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 1), Ordered("bob", 0), Ordered("bob", 2))
    return shop


@asynccontextmanager
async def published_only(shop: Shop, *events: Ordered) -> AsyncIterator[App]:
    async with shop.app:
        await shop.app.publish_many(events)
        yield shop.app


# --- status -----------------------------------------------------------------------------------


def test_status_has_the_account_under_the_names_of_the_api(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = as_json(shop, capsys, "status")["groups"]["stock"]
    assert (stock["done"], stock["dead"], stock["parked"]) == (1, 1, 1)
    assert (stock["open"], stock["balances"]) == (0, True)


def test_status_says_what_is_dead_and_absent(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(shop, capsys, "status")
    assert "group members waiting in flight held parked dead done" in out
    assert "stock 0 0 0 0 1 1 1" in out
    assert "No process handles stock (since " in out
    assert "stock has 1 open dead letter; 1 event parked, behind them or until a retry." in out
    assert "mails has" not in out


async def test_status_says_what_an_absent_group_makes_the_log_keep(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    async with published_only(shop, Ordered("cid", 1), Ordered("dan", 1)):
        pass
    await in_thread(shop, "status")
    out = " ".join(capsys.readouterr().out.split())
    assert "), and 2 events of the log wait. The log keeps" in out


def test_status_says_why_a_group_is_paused_and_how_it_goes_on(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shop, "groups", "pause", "stock", "--reason", "stocktaking") == 0
    out = printed(shop, capsys, "status")
    assert "stock is paused: stocktaking." in out
    assert f"let it go on: eventlane --broker {shop.url} groups resume stock" in out


async def test_status_says_what_stops_a_partition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)

    async def handle(ordered: Ordered, ctx: Context) -> None:
        raise ValueError("no")

    strict = App(shop.url, durability="os", partitions=1)
    strict.subscribe(Ordered, group="audit", ordering="partition", retry=Retry(attempts=1))(handle)
    async with strict:
        await strict.publish(Ordered("ada", 1))
        await strict.run_until_idle(timeout_s=20)
    await in_thread(shop, "status")
    out = " ".join(capsys.readouterr().out.split())
    assert "audit is blocked: orders[0] is stopped by the dead letter at offset 0: replay" in out


async def test_status_says_once_what_the_file_and_its_owner_say(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    app = App(shop.url, durability="os", partitions=1)

    @app.subscribe(Ordered, group="audit", on_dead="stop", retry=Retry(attempts=1))
    async def handle(ordered: Ordered, ctx: Context) -> None:
        raise ValueError("no")

    async with app, app.handling():
        await app.publish(Ordered("ada", 1))
        while not (await app.status()).groups["audit"].dead:
            await yield_to_loop()
        (sentence,) = (await app.status()).groups["audit"].blocked
    assert sentence == "orders[0] is stopped by the dead letter at offset 0: replay or archive it"


async def test_status_of_what_is_well_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    async with shop.open_for_business():
        await shop.app.publish(Ordered("ada", 1))
        assert await in_thread(shop, "status") == 0
    assert "Nothing is dead, blocked or paused" in capsys.readouterr().out


async def test_a_broker_without_groups_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with App(f"embedded:{tmp_path}", durability="os"):
        pass
    for command in ("status", "lag", "groups list"):
        assert await in_thread(Shop(tmp_path), *command.split()) == 0
        assert "No groups yet" in capsys.readouterr().out


# --- lag and topics ---------------------------------------------------------------------------


async def test_lag_says_how_far_each_group_is_behind_in_each_partition(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    async with published_only(shop, Ordered("cid", 1), Ordered("dan", 1)):
        pass
    assert await in_thread(shop, "lag", "--json") == 0
    lag = json.loads(capsys.readouterr().out)
    assert (lag["stock"]["open"], lag["stock"]["parked"], lag["stock"]["members"]) == (2, 1, 0)
    assert lag["stock"]["retained_bytes"] > 0
    assert sum(each["open"] for each in lag["stock"]["partitions"]) == 2
    for each in lag["mails"]["partitions"]:
        assert each["end"] - each["watermark"] == each["open"]
    assert await in_thread(shop, "lag", "--group", "stock") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "group behind parked log keeps members stock 2 1" in out
    assert "mails" not in out


def test_lag_of_who_has_caught_up_says_so(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(shop, capsys, "lag").endswith(" 0 No partition is behind.")
    assert "stock orders 1" in printed(shop, capsys, "lag", "--all")


def test_looking_at_the_lag_resets_nothing(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = as_json(shop, capsys, "status")["groups"]["stock"]
    assert run(shop, "lag") == 0
    after = as_json(shop, capsys, "status")["groups"]["stock"]
    assert {**before, "absent_s": 0} == {**after, "absent_s": 0}


def test_lag_of_an_unknown_group_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'stock'?" in refused(shop, capsys, "lag", "--group", "stok")


def test_topics_are_listed_with_their_size(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    orders = as_json(shop, capsys, "topics")["orders"]
    assert (orders["partitions"], orders["published"]) == (2, 3)
    assert f"orders 2 3 {orders['size_bytes']} B" in printed(shop, capsys, "topics")


# --- tail -------------------------------------------------------------------------------------


def test_tail_prints_the_last_messages(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop, "tail", "orders") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("Ordered" in line and '{"customer"' in line for line in lines)
    assert run(shop, "tail", "orders", "--limit", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_tail_as_json_is_one_message_on_a_line(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shop, "tail", "orders", "--start", "first", "--json") == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["key"] for each in messages} == {"ada", "bob"}
    assert {each["event_type"] for each in messages} == {"Ordered"}
    assert all(json.loads(each["value"])["customer"] == each["key"] for each in messages)


async def test_tail_follows_what_comes_until_it_has_enough(shop: Shop) -> None:
    terminal = Terminal(shop, "tail", "orders", "--follow", "--limit", "2")
    terminal.until("waiting for messages of orders")
    async with shop.app:
        # It may begin to read after the first of them.
        number = 0
        while terminal.text.count("Ordered") < 2:
            number += 1
            await shop.app.publish(Ordered("eve", number))
            terminal.poll()
    assert terminal.ended() == 0
    assert "eve" in terminal.text
    assert "ada" not in terminal.text


def test_tail_of_an_unknown_topic_is_refused(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--follow",), ("--start", "first")):
        assert "Did you mean 'orders'?" in refused(shop, capsys, "tail", "order", *more)


# --- trace ------------------------------------------------------------------------------------


async def test_a_trace_says_what_became_of_an_event_in_each_group(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (letter,) = await shop.letters()
    assert await in_thread(shop, "trace", str(letter.event_id), "--json") == 0
    trace = json.loads(capsys.readouterr().out)
    assert {each["group"]: each["state"] for each in trace["groups"]} == {
        "stock": "dead",
        "mails": "settled",
    }
    assert await in_thread(shop, "trace", str(letter.event_id), "--chain") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"stock dead 2 {letter.id}" in out
    assert "mails settled" in out
    assert "What came of it" in out
    assert "eventlane.DeadLettered" in out
    assert "All with its correlation id" in out
    assert f"failures show {letter.id}" in out


async def test_a_trace_takes_the_id_of_a_dead_letter_too(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (letter,) = await shop.letters()
    assert await in_thread(shop, "trace", str(letter.id)) == 0
    captured = capsys.readouterr()
    assert f"is a dead letter; its event is {letter.event_id}" in captured.err
    assert str(letter.event_id) in captured.out


def test_a_trace_of_an_unknown_event_is_refused(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is none on the log" in refused(shop, capsys, "trace", str(uuid4()))


# --- lane -------------------------------------------------------------------------------------


def test_a_lane_says_why_its_key_waits(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    lanes: dict[str, Any] = {
        each["group"]: each for each in as_json(shop, capsys, "lane", "orders", "bob")
    }
    assert (lanes["stock"]["state"], lanes["stock"]["parked"]) == ("blocked", 1)
    assert lanes["mails"]["state"] == "free"
    out = printed(shop, capsys, "lane", "orders", "bob")
    assert f"stock: dead letter {lanes['stock']['dead_letter']} at offset" in out
    assert "1 parked event behind: replay or archive it; no process handles the group." in out
    assert f"failures show {lanes['stock']['dead_letter']}" in out


async def test_a_lane_names_its_event_once_for_all_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 1))
    async with published_only(shop, Ordered("ada", 2)):
        pass
    assert await in_thread(shop, "lane", "orders", "ada") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("the event:") == 1
    assert "mails: its next event, at offset 1, waits; no process handles the group." in out


def test_a_key_is_taken_as_it_is_typed(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert r"key \xff of orders" in printed(shop, capsys, "lane", "orders", "\udcff")


def test_a_lane_of_an_unknown_topic_is_refused(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Did you mean 'orders'?" in refused(shop, capsys, "lane", "order", "bob")
