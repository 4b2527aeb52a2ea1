"""Replay, archive, restore and operations: what they do, what they refuse, how they end."""

import asyncio
import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventlane.brokers import connect
from eventlane.settlement import LaneState
from eventlane.testing.stage import TOPIC, acquired, letter, record, settlement, spec
from eventlane.topic import Topic
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

BECAUSE = ("--reason", "it is mended", "--actor", "ines")
AT_ONCE = ("--no-canary", "--no-rate-limit", "--never-pause")


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    """With three dead letters, and an event of bob behind his."""
    shop = Shop(tmp_path)
    await shop.handle_all(
        Ordered("ada", 1),
        Ordered("bob", 0),
        Ordered("bob", 2),
        Ordered("cid", 0),
        Ordered("dan", 0),
    )
    return shop


@pytest.fixture
async def bob(shop: Shop) -> str:
    (letter,) = await shop.letters(query="key:bob")
    return str(letter.id)


# --- replay -----------------------------------------------------------------------------------


async def test_what_was_replayed_is_handled_in_order_by_the_next_run(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"bob"}
    assert await in_thread(shop, "replay", bob, *BECAUSE) == 0
    await shop.handle_all()
    assert shop.handled[-2:] == [Ordered("bob", 0), Ordered("bob", 2)]


def test_a_replay_without_anybody_who_handles_the_group_stays_pending_and_says_so(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(shop, capsys, "replay", bob, *BECAUSE)
    assert "operation 1: replay of 1 dead letter of stock, running" in out
    assert "It waits: group 'stock' has no live member." in out
    assert as_json(shop, capsys, "status")["groups"]["stock"]["pending"] == 1
    assert "stock has yet to carry out what operators asked for" in printed(shop, capsys, "status")


async def test_a_replay_into_a_paused_group_stays_pending_and_says_so(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with shop.open_for_business():
        assert await in_thread(shop, "groups", "pause", "stock", "--reason", "stocktaking") == 0
        capsys.readouterr()
        assert await in_thread(shop, "replay", bob, *BECAUSE, "--json") == 0
        status = json.loads(capsys.readouterr().out)
    assert status["waiting_for"] == "group 'stock' is paused: stocktaking"
    assert (status["total"], status["resolved"]) == (1, 0)


async def test_waiting_ends_with_0_when_all_are_handled(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"bob", "cid", "dan"}
    async with shop.open_for_business():
        assert await in_thread(shop, "replay", "--group", "stock", *BECAUSE, "--wait") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "operation 1: replay of 3 dead letters of stock, done" in out
    assert "done 3 of 3" in out
    assert "query group:stock" in out


async def test_waiting_ends_with_4_when_some_are_handled(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"cid"}
    async with shop.open_for_business():
        replay = ("replay", "--query", "exc:ValueError", *BECAUSE, *AT_ONCE, "--wait", "--json")
        assert await in_thread(shop, *replay) == 4
    status = json.loads(capsys.readouterr().out)
    assert (status["resolved"], status["failed"], status["total"]) == (1, 2, 3)


async def test_waiting_ends_with_1_when_the_canary_dies_again(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    async with shop.open_for_business():
        assert await in_thread(shop, "replay", "--group", "stock", *BECAUSE, "--wait") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "of stock, paused" in out
    assert "Why: group 'stock': 1 of the last 1 that ended died again" in out
    assert "not begun 2" in out
    assert "ops resume 1" in out


def test_waiting_says_what_for_and_may_be_given_up(shop: Shop, bob: str) -> None:
    terminal = Terminal(shop, "replay", bob, *BECAUSE, "--wait")
    terminal.until("operation 1 waits: group 'stock' has no live member")
    terminal.until("0 of 1 done")
    terminal.interrupt()
    assert terminal.ended() == 130
    assert "The operation goes on" in terminal.text
    assert "ops show 1 --wait" in terminal.text
    assert "Traceback" not in terminal.text


def test_a_dry_run_says_what_a_replay_would_do_and_does_nothing(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = as_json(shop, capsys, "replay", "--group", "stock", "--dry-run")
    assert (plan["count"], plan["groups"], plan["keys"]) == (3, {"stock": 3}, 3)
    assert (plan["followers"], plan["conflict_count"], plan["refusal_count"]) == (1, 0, 0)
    out = printed(shop, capsys, "replay", bob, "--dry-run")
    assert "dead letters 1 groups stock (1) keys 1 followers 1 parked event" in out
    assert "Nothing was changed." in out
    assert as_json(shop, capsys, "ops", "list") == []


def test_a_dry_run_of_nothing_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no open dead letter meets that" in refused(
        shop, capsys, "replay", "--query", "key:eve", "--dry-run"
    )
    assert "no dead letter meets it" in refused(
        shop, capsys, "replay", "--query", "key:eve", *BECAUSE
    )


async def test_an_unknown_an_archived_and_a_replaying_letter_are_refused(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = str(uuid4())
    (cid,) = [str(each.id) for each in await shop.letters(query="key:cid")]
    (dan,) = [str(each.id) for each in await shop.letters(query="key:dan")]
    assert await in_thread(shop, "archive", cid, "--reason", "a test", "--actor", "ines") == 0
    assert await in_thread(shop, "replay", dan, *BECAUSE) == 0
    for letter_id, words in (
        (unknown, f"dead letter {unknown}: there is none"),
        (cid, "got one that is archived (ines, "),
        (dan, "it is being replayed (ines, "),
    ):
        capsys.readouterr()
        # Together with one that could be replayed: all or nothing.
        assert await in_thread(shop, "replay", bob, letter_id, "--reason", "x") == 3
        captured = capsys.readouterr()
        assert words in captured.err
        assert "nothing was changed" in captured.err
    capsys.readouterr()
    assert await in_thread(shop, "replay", cid, dan, "--dry-run") == 3
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("It would be refused. Nothing was changed. Refused dead letter why")
    assert f"{dan} it is being replayed (ines, " in out
    (letter,) = await shop.letters(query="key:bob")
    assert letter.state == "open"


async def test_of_two_operators_at_once_one_wins_and_the_other_is_told_who(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = await asyncio.gather(
        *(
            in_thread(shop, "replay", bob, "--reason", "x", "--actor", who)
            for who in ("ines", "kim")
        )
    )
    assert sorted(codes) == [0, 3]
    winner = ("ines", "kim")[codes.index(0)]
    assert f"it is being replayed ({winner}, " in capsys.readouterr().err


async def test_letters_are_named_or_looked_for_and_not_both(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("replay", "archive", "restore"):
        assert await in_thread(shop, command, "--reason", "x") == 2
        assert "got neither" in capsys.readouterr().err
        assert await in_thread(shop, command, bob, "--group", "stock", "--reason", "x") == 2
        assert "got both" in capsys.readouterr().err
        assert await in_thread(shop, command, "exc:KeyError", "--reason", "x") == 2
        assert "--query exc:KeyError" in capsys.readouterr().err


async def test_a_later_letter_of_a_lane_is_refused_unless_the_gap_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    first, second = await two_dead_of_one_lane(shop)
    for more, code, words in (
        ((), 3, "It would be refused. Nothing was changed. Order conflicts"),
        (("--allow-gap",), 0, "order conflicts 1"),
    ):
        assert await in_thread(shop, "replay", second, "--dry-run", *more) == code
        out = " ".join(capsys.readouterr().out.split())
        assert words in out
        assert f"dead letter would pass {second} {first}" in out
    assert await in_thread(shop, "replay", second, *BECAUSE) == 3
    assert f"letter {first} (offset 0) of the same lane died" in capsys.readouterr().err
    assert await in_thread(shop, "replay", second, *BECAUSE, "--allow-gap") == 0


async def two_dead_of_one_lane(shop: Shop) -> list[str]:
    broker = await connect(shop.url, durability="os")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    consumer = await broker.join(spec())
    own = await acquired(consumer)
    records = [record("bob", "{}"), record("bob", "{}")]
    await broker.append([(TOPIC, records)])
    letters = [letter(own, at, each) for at, each in enumerate(records)]
    closed = LaneState(letters[0].lane, blockers=(0, 1))
    await consumer.settle([settlement(own, 2, dead=letters, lanes=[closed])])
    await broker.aclose()
    return [str(each.id) for each in letters]


async def test_letters_of_a_query_that_were_replayed_too_often_are_left_out_and_told(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"cid", "dan"}
    async with shop.open_for_business():
        for _ in range(10):
            operation = await shop.app.replay(UUID(bob), reason="x", pause_above=None)
            await operation.wait()
        replay = ("replay", "--group", "stock", *BECAUSE, *AT_ONCE, "--wait")
        assert await in_thread(shop, *replay) == 4
    out = " ".join(capsys.readouterr().out.split())
    assert "done 2 of 3 left as they were 1" in out
    assert "1 it was replayed 10 times, and its group's Limits.replays_max=10: archive" in out
    assert await in_thread(shop, "replay", "--group", "stock", "--dry-run") == 3
    assert "it was replayed 10 times" in " ".join(capsys.readouterr().out.split())


# --- archive and restore ----------------------------------------------------------------------


async def test_archiving_opens_the_lane(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await in_thread(shop, "archive", bob, "--reason", "a test order") == 0
    assert "what is parked behind them follows once" in capsys.readouterr().err
    await shop.handle_all()
    assert shop.handled[-1] == Ordered("bob", 2)
    # A second operator is refused, and told why.
    assert await in_thread(shop, "archive", bob, "--reason", "again") == 3
    assert "got one that is archived" in capsys.readouterr().err


def test_many_are_archived_and_restored_by_a_query(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    archived = as_json(shop, capsys, "archive", "--query", "exc:ValueError", *BECAUSE)
    assert (archived["kind"], archived["changed"], archived["has_ended"]) == ("archive", 3, True)
    out = printed(shop, capsys, "restore", "--group", "stock", "--query", "key:cid", *BECAUSE)
    assert "operation 2: restore of 1 dead letter of stock, done done 1 of 1" in out
    (letter,) = as_json(shop, capsys, "failures", "list")
    assert letter["key"] == "cid"
    assert "no dead letter meets it" in refused(
        shop, capsys, "restore", "--query", "key:cid", *BECAUSE
    )


# --- operations -------------------------------------------------------------------------------


def test_operations_are_listed_and_shown(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(shop, capsys, "ops", "list") == "No operations."
    assert run(shop, "archive", "--query", "key:cid", *BECAUSE) == 0
    assert run(shop, "replay", bob, *BECAUSE) == 0
    listed = as_json(shop, capsys, "ops", "list")
    assert [(each["id"], each["kind"], each["state"]) for each in listed] == [
        (2, "replay", "running"),
        (1, "archive", "done"),
    ]
    assert [each["id"] for each in as_json(shop, capsys, "ops", "list", "--state", "done")] == [1]
    out = printed(shop, capsys, "ops", "list")
    assert "2 replay running 1 0 0 1" in out
    assert "operation 2 waits: group 'stock' has no live member" in out
    shown = as_json(shop, capsys, "ops", "show", "2")
    assert {**shown, "left_out": None} == {**listed[0], "left_out": None}
    out = printed(shop, capsys, "ops", "show", "2")
    assert "by ines reason it is mended" in out
    assert "ops cancel 2" in out


def test_an_operation_is_paused_resumed_and_cancelled(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shop, "replay", "--group", "stock", *BECAUSE) == 0
    out = printed(shop, capsys, "ops", "pause", "1", "--reason", "not now", "--actor", "ines")
    assert "Why: not now (ines). done 0 of 3 not begun 3" in out
    assert "is paused already (ines, " in refused(shop, capsys, "ops", "pause", "1", *BECAUSE)
    assert as_json(shop, capsys, "ops", "resume", "1", *BECAUSE)["state"] == "running"
    out = printed(shop, capsys, "ops", "show", "1")
    assert "It waits: group 'stock' has no live member." in out
    assert as_json(shop, capsys, "ops", "cancel", "1", *BECAUSE)["state"] == "cancelled"
    out = printed(shop, capsys, "ops", "show", "1")
    assert "cancelled" in out
    assert "Not done, and why letters why" in out
    assert "3 the operation was cancelled" in out
    assert "got one that is cancelled" in refused(shop, capsys, "ops", "resume", "1", *BECAUSE)


def test_an_unknown_operation_is_refused_with_where_they_are(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("show", "pause", "resume", "cancel"):
        more = () if command == "show" else BECAUSE
        assert "ops list` has them" in refused(shop, capsys, "ops", command, "7", *more)


async def test_an_operation_can_be_waited_for_later(
    shop: Shop, bob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.mended = {"bob"}
    assert await in_thread(shop, "replay", bob, *BECAUSE) == 0
    async with shop.open_for_business():
        assert await in_thread(shop, "ops", "show", "1", "--wait") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "replay of 1 dead letter of stock, done done 1 of 1 followers 1 handled" in out
