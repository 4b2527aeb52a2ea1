"""What dead letters are looked for by, and which are found."""

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlane.brokers import connect
from eventlane.brokers.embedded.letters import Search
from eventlane.errors import ConfigError
from eventlane.failure import DeadLetter
from eventlane.query import Query, query_of
from eventlane.testing.stage import GROUP, TOPIC, acquired, letter, record, settlement, spec
from eventlane.topic import Topic


def test_a_text_names_each_condition() -> None:
    text = (
        "group:billing type:OrderCreated exc:KeyError handler:shop.reserve key:c-991 topic:orders "
        "fp:0a1b version:1.2 since:2026-11-25T10:00 until:2026-11-26"
    )
    query = query_of(text)
    assert query == Query(
        group="billing",
        type="OrderCreated",
        exception="KeyError",
        handler="shop.reserve",
        key="c-991",
        topic="orders",
        fingerprint="0a1b",
        app_version="1.2",
        since="2026-11-25T10:00",
        until="2026-11-26",
    )
    assert str(query) == text


def test_values_with_spaces_are_quoted() -> None:
    query = query_of(r'key:"a \"b\" \\ c"  type:X')
    assert (query.key, query.type) == (r'a "b" \ c', "X")


@given(st.text(min_size=1).filter(lambda text: text.isprintable() or text.isspace()))
def test_the_text_of_a_query_gives_the_query(value: str) -> None:
    query = Query(handler=value, type="A")
    assert query_of(str(query)) == query


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exception:KeyError", "'exception' is no qualifier. Did you mean"),
        ("ky:1", "Did you mean 'key'?"),
        ("exeption:K", "Did you mean 'exc'?"),
        ("app-version:1", "Did you mean 'version'?"),
        ("foo:1", "'foo' is no qualifier. Known: exc, fp, group"),
        ("KeyError", "bare word 'KeyError'. Say what it is, as in exc:KeyError or key:KeyError"),
        ('exc:KeyError "a b"', "bare word"),
        ("exc:A exc:B", "'exc' once, got it twice"),
        ("", "expected conditions, as in 'exc:KeyError key:c-991', got none"),
        ("   ", "got none"),
        ('key:"a', "in double quotes"),
        ("exc:", "expected something after exc:, as in"),
        ("key:a exc: type:B", "expected something after exc:"),
        ('exc:""', "expected some text"),
        ("since:yesterday", "expected a time, as in '2026-11-25T10:00' \\(UTC\\)"),
    ],
)
def test_a_text_that_is_no_query_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        query_of(text)


@pytest.mark.parametrize("value", [7, None, ["exc:A"], b"exc:A"])
def test_what_is_no_text_is_no_query(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a Query, or text"):
        query_of(value)


@pytest.mark.parametrize(
    "options", [{"key": 1.5}, {"type": ""}, {"group": 3}, {"since": 5}, {"until": "x"}]
)
def test_a_condition_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Query\(\w+="):
        Query(**options)


def test_times_are_in_utc_unless_they_say_otherwise() -> None:
    at_ms = 1_795_600_800_000
    moment = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)
    assert moment.timestamp() * 1000 == at_ms
    for since in (
        moment,
        moment.replace(tzinfo=None),
        moment.astimezone(timezone(timedelta(hours=5))),
        "2026-11-25T10:00",
        "2026-11-25T12:00+02:00",
    ):
        assert Query(since=since).since_ms == at_ms


# --- searching --------------------------------------------------------------------------------

EXCEPTIONS = ("KeyError", "ValueError", "OSError")
VERSIONS = ("1", "2", None)
KEYS = ("a", "b", "c", None)
START_MS = 1_700_000_000_000


async def _file_of_letters(directory: Path) -> tuple[Path, list[DeadLetter]]:
    broker: Any = await connect(f"embedded:{directory}", durability="os")
    await broker.ensure_topic(Topic(TOPIC, partitions=1))
    letters: list[DeadLetter] = []
    for group in (GROUP, "other"):
        consumer = await broker.join(spec(group))
        own = await acquired(consumer)
        dead = [
            msgspec.structs.replace(
                letter(own, offset, record(KEYS[offset % 4], "x"), group=group),
                error_class=EXCEPTIONS[offset % 3],
                app_version=VERSIONS[offset // 40],
                event_type=("A", "B")[offset % 2],
                handler=f"shop.h{offset % 5}",
                fingerprint=f"{group}-{offset % 3}",
                on_dead="continue",
            )
            for offset in range(120)
        ]
        await consumer.settle([settlement(own, 120, dead=dead)])
        letters += dead
    await broker.archive([each.id for each in letters[::7]], actor="a", reason="r")
    await broker.aclose()
    return broker._file.path, letters


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file with 240 letters of every kind, and what each of them is."""
    path, letters = asyncio.run(_file_of_letters(tmp_path_factory.mktemp("letters")))
    connection = sqlite3.connect(path, isolation_level=None)
    # Ten died in each millisecond, whatever the clock said.
    connection.execute("UPDATE letter SET dead_ms = ? + number / 10", (START_MS,))
    yield connection, letters
    connection.close()


def expected(letters: list[Any], state: str | None, query: Query) -> list[UUID]:
    archived = {each.id for each in letters[::7]}
    since_ms, until_ms = query.since_ms or 0, query.until_ms or 1 << 62
    return [
        each.id
        for number, each in enumerate(letters, 1)
        if state in (None, "archived" if each.id in archived else "open")
        and query.group in (None, each.group)
        and query.type in (None, each.event_type)
        and query.exception in (None, each.error_class)
        and query.handler in (None, each.handler)
        and query.key_bytes in (None, each.key)
        and query.topic in (None, each.topic)
        and query.fingerprint in (None, each.fingerprint)
        and query.app_version in (None, each.app_version)
        and since_ms <= START_MS + number // 10 < until_ms
    ]


QUERIES = [
    "group:group",
    "exc:KeyError",
    "exc:KeyError version:2",
    "key:a",
    "key:a exc:ValueError type:A",
    "handler:shop.h3 group:other",
    "fp:other-1",
    "topic:steps",
    "topic:elsewhere",
    "version:2 type:B",
    "key:nobody",
    f"since:{datetime.fromtimestamp((START_MS + 10) / 1000, UTC).isoformat()}",
    f"until:{datetime.fromtimestamp((START_MS + 3) / 1000, UTC).isoformat()} exc:OSError",
    f"since:{datetime.fromtimestamp((START_MS + 5) / 1000, UTC).isoformat()} key:b",
]


@pytest.mark.parametrize("few", [0, 20, 10_000])
@pytest.mark.parametrize("state", ["open", "archived", None])
@pytest.mark.parametrize("text", QUERIES)
def test_a_search_finds_what_meets_all_conditions_in_order_and_in_pages(
    found: Any, text: str, state: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventlane.brokers.embedded.letters._FEW", few)
    connection, letters = found
    query = query_of(text)
    last, pages = (0, 0), []
    while page := Search(connection, state=state, query=query).page(last, 3):
        assert len(page) <= 3
        pages += page
        last = page[-1]
    numbers = json.dumps([number for _, number in pages])
    ids = [
        UUID(bytes=row[0])
        for row in connection.execute(
            "SELECT letter.id FROM json_each(?) AS chosen JOIN letter ON number = value "
            "ORDER BY chosen.key",
            (numbers,),
        )
    ]
    assert ids == expected(letters, state, query)


def test_a_letter_that_dies_of_something_else_is_found_by_that(found: Any) -> None:
    connection, _ = found
    (number,) = [n for _, n in Search(connection, state="open", query=Query()).page((0, 0), 1)]
    connection.execute("BEGIN")
    connection.execute(
        "UPDATE letter SET error_class = 'Other', fingerprint = 'f' WHERE number = ?", (number,)
    )
    for text in ("exc:Other", "fp:f"):
        page = Search(connection, state="open", query=query_of(text)).page((0, 0), 10)
        assert [each for _, each in page] == [number]
    connection.execute("ROLLBACK")
