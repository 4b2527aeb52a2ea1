"""`eventlane groups`: pause, resume, rename, reset, remove; and that nothing happens by mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

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

BECAUSE = ("--reason", "new rules", "--actor", "ines")


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 1), Ordered("bob", 0), Ordered("bob", 2))
    return shop


def groups_of(shop: Shop, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = as_json(shop, capsys, "groups", "list")
    return found


def test_groups_are_listed_with_who_handles_them(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert groups_of(shop, capsys)["stock"]["dead"] == 1
    out = printed(shop, capsys, "groups", "list")
    assert "group members open parked dead log keeps state" in out
    assert "stock 0 0 1 1 0 B no process for" in out


def test_a_group_is_paused_and_goes_on(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(shop, capsys, "groups", "pause", "stock", "--reason", "stocktaking")
    assert "paused: stocktaking" in out
    assert "groups resume stock" in out
    assert groups_of(shop, capsys)["stock"]["paused"] == "stocktaking"
    assert run(shop, "groups", "resume", "stock") == 0
    assert groups_of(shop, capsys)["stock"]["paused"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause", *BECAUSE),
        ("resume",),
        ("rename", "store", *BECAUSE),
        ("reset", "--to", "now", "--dry-run"),
        ("remove", "--dry-run"),
    ],
)
def test_an_unknown_group_is_refused_with_what_was_meant(
    shop: Shop, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    command, *more = arguments
    assert "Did you mean 'stock'?" in refused(shop, capsys, "groups", command, "stok", *more)


# --- rename -----------------------------------------------------------------------------------


def test_a_group_is_renamed_with_all_that_it_has(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(shop, capsys, "groups", "rename", "stock", "store", *BECAUSE)
    assert "stock is called store now. Rename it in the code too" in out
    groups = groups_of(shop, capsys)
    assert set(groups) == {"mails", "store"}
    assert (groups["store"]["done"], groups["store"]["dead"]) == (1, 1)


def test_a_name_that_cannot_be_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    rename = ("groups", "rename", "stock")
    assert "a name that is free" in refused(shop, capsys, *rename, "mails", *BECAUSE)
    for name in ("a.b", "a b"):
        assert "characters of A-Z" in refused(shop, capsys, *rename, name, *BECAUSE, code=2)


async def test_a_group_that_is_handled_is_neither_renamed_nor_removed(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    async with shop.open_for_business():
        for command in (("rename", "stock", "store"), ("remove", "stock", "--yes-remove", "stock")):
            assert await in_thread(shop, "groups", *command, *BECAUSE) == 3
            assert "stop all its processes first" in capsys.readouterr().err


# --- reset ------------------------------------------------------------------------------------


def test_a_dry_run_of_a_reset_says_what_it_would_do_and_does_nothing(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    reset = ("groups", "reset", "stock", "--to", "first", "--dry-run")
    plan = as_json(shop, capsys, *reset)
    assert (plan["is_done"], plan["handled_again"], plan["passed_over"]) == (False, 3, 0)
    out = printed(shop, capsys, *reset)
    assert "topic partition from to again passed over" in out
    assert "stock: 3 events would come again, 0 events would be passed over." in out
    assert "Nothing was changed." in out
    assert groups_of(shop, capsys)["stock"]["done"] == 1


def test_a_reset_shows_the_partitions_that_change_and_counts_the_others(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    reset = ("groups", "reset", "mails", "--to", "now", "--dry-run")
    out = printed(shop, capsys, *reset)
    assert "partition from" not in out
    assert "2 partitions without a change (--all has them too)" in out
    assert "orders 0 " in printed(shop, capsys, *reset, "--all")


async def test_a_reset_has_events_handled_again(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"bob"}
    reset = ("groups", "reset", "stock", "--to", "first", "--yes-reset", "stock", *BECAUSE)
    assert await in_thread(shop, *reset) == 0
    assert "stock: 3 events come again" in capsys.readouterr().out
    shop.handled.clear()
    await shop.handle_all()
    assert len(shop.handled) == 3


@pytest.mark.parametrize(
    ("to", "again"),
    [
        (["first"], 3),
        (["now"], 0),
        (["1999-12-31"], 3),
        (["2999-12-31T10:00:00+01:00"], 0),
        (["orders/0=0", "orders/1=0"], 3),
    ],
)
def test_a_group_goes_on_where_it_is_told(
    shop: Shop, capsys: pytest.CaptureFixture[str], to: list[str], again: int
) -> None:
    words = [word for each in to for word in ("--to", each)]
    plan = as_json(shop, capsys, "groups", "reset", "stock", *words, "--dry-run")
    assert plan["handled_again"] == again


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        (["frist"], 2, "Did you mean 'first'?"),
        (["yesterday"], 2, "expected first, now, a time"),
        (["orders=3"], 2, "as in orders/3=1200"),
        (["orders/0=-1"], 2, "as in orders/3=1200"),
        (["first", "orders/0=1"], 2, "as in orders/3=1200"),
        (["order/0=1"], 3, "Did you mean 'orders'?"),
        (["orders/9=1"], 3, "expected one of its partitions, 0 to 1"),
        (["orders/0=99"], 3, "expected an offset from 0"),
    ],
)
def test_a_place_that_is_none_is_refused(
    *, shop: Shop, capsys: pytest.CaptureFixture[str], to: list[str], code: int, words: str
) -> None:
    arguments = [word for each in to for word in ("--to", each)]
    reset = ("groups", "reset", "stock", *arguments, "--dry-run")
    assert words in refused(shop, capsys, *reset, code=code)


# --- what cannot be undone --------------------------------------------------------------------


@pytest.mark.parametrize("command", ["reset", "remove"])
def test_without_a_terminal_what_cannot_be_undone_needs_the_name_twice(
    shop: Shop, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = ("groups", command, "stock", *(("--to", "now") if command == "reset" else ()))
    before = groups_of(shop, capsys)["stock"]
    words = refused(shop, capsys, *arguments, *BECAUSE)
    assert f"add --yes-{command} stock. Nothing was changed." in words
    words = refused(shop, capsys, *arguments, *BECAUSE, f"--yes-{command}", "stok")
    assert "expected 'stock' to be typed, got 'stok'. Nothing was changed." in words
    assert run(shop, *arguments, *BECAUSE, "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "Refused"
    assert (told["plan"]["group"], told["plan"]["is_done"]) == ("stock", False)
    assert {**groups_of(shop, capsys)["stock"], "absent_s": 0} == {**before, "absent_s": 0}


def test_at_a_terminal_the_name_is_asked_for_below_what_would_be_lost(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer, code in (("stok", 3), ("stock", 0)):
        assert "stock" in groups_of(shop, capsys)
        terminal = Terminal(shop, "groups", "remove", "stock", *BECAUSE)
        terminal.until("Type the name of the group to go on (stock): ")
        assert "1, of which 1 open" in terminal.text
        terminal.type(answer)
        assert terminal.ended() == code
    assert "stock is removed" in terminal.text
    assert set(groups_of(shop, capsys)) == {"mails"}


async def test_what_was_done_to_a_group_is_told_after_its_removal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 0), Ordered("bob", 0), Ordered("cid", 0))
    assert await in_thread(shop, "archive", "--query", "key:ada", *BECAUSE) == 0
    assert await in_thread(shop, "replay", "--query", "key:bob", *BECAUSE) == 0
    remove = ("groups", "remove", "stock", "--yes-remove", "stock", *BECAUSE)
    assert await in_thread(shop, *remove) == 0
    capsys.readouterr()
    assert await in_thread(shop, "ops", "list", "--json") == 0
    told = [
        [each[name] for name in ("kind", "state", "total", "changed", "returned", "pending")]
        for each in json.loads(capsys.readouterr().out)
    ]
    assert told == [["replay", "cancelled", 1, 0, 1, 0], ["archive", "done", 1, 1, 0, 0]]


def test_a_group_is_removed_with_its_name_twice(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run = as_json(shop, capsys, "groups", "remove", "stock", "--dry-run")
    assert (dry_run["is_done"], dry_run["letters"], dry_run["parked"]) == (False, 1, 1)
    remove = ("groups", "remove", "stock", "--yes-remove", "stock", *BECAUSE, "--json")
    capsys.readouterr()
    assert run(shop, *remove) == 0
    assert json.loads(capsys.readouterr().out) == {**dry_run, "is_done": True}
    assert set(groups_of(shop, capsys)) == {"mails"}
