"""`eventlane failures`: the kinds of failure, the letters, and one of them whole."""

import json
import re
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from eventlane import App, Context, Retry, event
from tests.unit.cli_shop import Ordered, Shop, as_json, in_thread, printed, refused, run


@event(topic="prices", key="item")
class Priced(msgspec.Struct, frozen=True):
    item: str
    cents: int
    note: str


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    await shop.handle_all(Ordered("ada", 1), Ordered("bob", 0), Ordered("bob", 2))
    return shop


async def many(shop: Shop, *customers: str) -> None:
    await shop.handle_all(*(Ordered(each, 0) for each in customers))


# --- list -------------------------------------------------------------------------------------


def test_a_failure_is_listed_with_what_one_has_to_know(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = as_json(shop, capsys, "failures", "list")
    assert (letter["key"], letter["error_message"]) == ("bob", "no quantity for bob")
    assert json.loads(letter["value"]) == {"customer": "bob", "quantity": 0}
    assert letter["headers"]["ce_type"] == "Ordered"
    assert [each["number"] for each in letter["history"]] == [1, 2]
    monkeypatch.setenv("COLUMNS", "140")
    out = printed(shop, capsys, "failures", "list")
    assert f"{letter['id']} bob ValueError: no quantity for bob stock 2 1" in out
    assert f"failures show {letter['id']}" in out
    assert f"replay --fingerprint {letter['fingerprint']} --dry-run" in out


async def test_failures_are_counted_by_their_cause_where_there_are_several_of_one(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    await many(shop, "cid", "dan")
    assert await in_thread(shop, "failures", "list") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("3 open dead letters, 1 cause count group newest oldest fingerprint")
    assert re.search("ValueError: no quantity for (cid|dan) id key", out)
    assert await in_thread(shop, "failures", "list", "--by-cause", "--json") == 0
    (cause,) = json.loads(capsys.readouterr().out)
    assert (cause["group"], cause["count"], cause["exception"]) == ("stock", 3, "ValueError")
    assert await in_thread(shop, "failures", "list", "--by-cause") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"3 stock \d+ s ago \d+ s ago {cause['fingerprint']}", out)
    assert "failures show" not in out


def test_one_cause_can_be_listed_by_its_fingerprint(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (letter,) = as_json(shop, capsys, "failures", "list")
    fingerprint = ("--fingerprint", letter["fingerprint"])
    for more in ((), ("--by-cause",)):
        assert len(as_json(shop, capsys, "failures", "list", *fingerprint, *more)) == 1
        assert as_json(shop, capsys, "failures", "list", "--fingerprint", "0", *more) == []


async def test_a_long_list_comes_page_by_page(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    await many(shop, "cid", "dan", "eve")
    found: list[str] = []
    page: list[str] = ["--limit", "3"]
    while True:
        assert await in_thread(shop, "failures", "list", "--json", *page) == 0
        captured = capsys.readouterr()
        found += [each["key"] for each in json.loads(captured.out)]
        if "--after" not in captured.err:
            break
        page = ["--limit", "3", "--after", captured.err.split()[-1]]
    assert sorted(found) == ["bob", "cid", "dan", "eve"]


@pytest.mark.parametrize(
    ("query", "count"),
    [("exc:ValueError", 1), ("key:bob group:stock", 1), ("key:ada", 0), ("since:2999-01-01", 0)],
)
def test_letters_are_found_by_a_query(
    shop: Shop, capsys: pytest.CaptureFixture[str], query: str, count: int
) -> None:
    assert len(as_json(shop, capsys, "failures", "list", "--query", query)) == count
    out = printed(shop, capsys, "failures", "list", "--query", query)
    assert out.startswith("id key" if count else "No dead letter meets that.")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("exception:ValueError", "Did you mean 'exc'?"),
        ("grop:stock", "Did you mean 'group'?"),
        ("ValueError", "as in exc:ValueError"),
        ("", "expected conditions"),
        ("key:\udcff", "expected text in UTF-8"),
    ],
)
def test_a_query_that_is_none_is_refused_with_what_was_meant(
    shop: Shop, capsys: pytest.CaptureFixture[str], query: str, words: str
) -> None:
    assert words in refused(shop, capsys, "failures", "list", "--query", query, code=2)
    assert words in refused(shop, capsys, "replay", "--query", query, "--dry-run", code=2)


def test_letters_of_an_unknown_group_are_refused(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("failures", "list"), ("replay", "--reason", "x"), ("archive",)):
        assert "Did you mean 'stock'?" in refused(shop, capsys, *arguments, "--group", "stok")


def test_letters_of_another_state_are_listed_when_asked_for(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(shop, capsys, "failures", "list", "--group", "mails") == (
        "No open dead letters of mails."
    )
    assert run(shop, "archive", "--group", "stock", "--reason", "a test order") == 0
    assert printed(shop, capsys, "failures", "list") == "No open dead letters."
    assert len(as_json(shop, capsys, "failures", "list", "--state", "archived")) == 1
    assert "archived" in printed(shop, capsys, "failures", "list", "--state", "all")


def test_causes_are_counted_of_one_state_only(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (("--query", "key:bob"), ("--state", "all"), ("--after", str(uuid4()))):
        words = refused(shop, capsys, "failures", "list", "--by-cause", *more, code=2)
        assert "leave --query, --after and --state all out" in words


# --- show -------------------------------------------------------------------------------------


def test_a_letter_is_shown_whole(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = as_json(shop, capsys, "failures", "list")
    letter = as_json(shop, capsys, "failures", "show", listed["id"])
    assert {**letter, "changes": None} == {**listed, "changes": None}
    out = printed(shop, capsys, "failures", "show", listed["id"])
    assert out.startswith("ValueError: no quantity for bob It is open, and closes its lane")
    for words in (
        "1 event parked behind it.",
        f"event Ordered, id {letter['event_id']}",
        "disposition exhausted, in stage handle",
        'Payload, 31 B { "customer": "bob", "quantity": 0 }',
        "ce_source shop",
        "attempt started (UTC) waited planned took error host",
        "raise ValueError(",
        f"replay {letter['id']}",
        "lane orders bob",
        f"trace {letter['event_id']}",
    ):
        assert words in out


def test_what_was_done_to_a_letter_is_shown_with_who_and_why(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (letter,) = as_json(shop, capsys, "failures", "list")
    for command, reason in (("archive", "a test order"), ("restore", "it was none")):
        assert run(shop, command, letter["id"], "--reason", reason, "--actor", "ines") == 0
    changes = as_json(shop, capsys, "failures", "show", letter["id"])["changes"]
    assert [(each["action"], each["actor"], each["reason"]) for each in changes] == [
        ("archive", "ines", "a test order"),
        ("restore", "ines", "it was none"),
    ]
    assert "archive ines 1 a test order" in printed(shop, capsys, "failures", "show", letter["id"])


def test_an_unknown_letter_is_refused_with_where_they_are(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = str(uuid4())
    words = refused(shop, capsys, "failures", "show", unknown)
    assert "failures list` has them" in words
    assert f"trace {unknown}`" in words


async def test_numbers_are_shown_as_they_were_sent_and_long_payloads_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App(f"embedded:{tmp_path}", durability="os")

    async def refuse(priced: Priced, ctx: Context) -> None:
        raise ValueError("no")

    app.subscribe(Priced, group="prices", retry=Retry(attempts=1))(refuse)
    async with app:
        await app.publish(Priced("tea", 9007199254740993, "x" * 20_000))
        await app.run_until_idle(timeout_s=20)
        (letter,) = await app.dead_letters()
    assert await in_thread(Shop(tmp_path), "failures", "show", str(letter.id)) == 0
    out = capsys.readouterr().out
    assert '"cents": 9007199254740993' in out
    assert "… (--json has all of it)" in out
    assert len(out) < 20_000
