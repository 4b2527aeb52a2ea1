"""Declaring event types: what is kept, and what is refused with which words."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from eventlane.errors import ConfigError, EventRefused
from eventlane.event import Topic, event, event_type, fields_of, key_bytes


@event(topic="orders", key="order_id")
class OrderCreated(msgspec.Struct, frozen=True):
    order_id: str
    quantity: int = 1


@event(topic="orders")
@dataclass(frozen=True, slots=True)
class OrderPaid:
    order_id: str


@event(topic="orders", key="order_id")
@attrs.frozen
class OrderShipped:
    order_id: str


@event(topic="orders", key="order_id")
class OrderReturned(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    order_id: UUID


class Weight(IntEnum):
    HEAVY = 7


class Colour(StrEnum):
    RED = "red"


class OldColour(str, Enum):  # noqa: UP042 - the older form, whose str() is the member's name
    RED = "red"


def test_a_marked_class_is_returned_unchanged_and_knows_its_declaration() -> None:
    declared = event_type(OrderCreated)
    assert declared.cls is OrderCreated
    assert declared.name == "OrderCreated"
    assert declared.topic == Topic("orders")
    assert declared.format is None
    assert OrderCreated("o-1").quantity == 1


@pytest.mark.parametrize("cls", [OrderCreated, OrderPaid, OrderShipped, OrderReturned])
def test_structs_dataclasses_attrs_and_pydantic_models_can_be_marked(cls: type) -> None:
    assert event_type(cls).cls is cls
    assert "order_id" in fields_of(cls)


def test_a_declaration_says_where_it_stands() -> None:
    file, _, line = event_type(OrderCreated).declared_at.rpartition(":")
    assert file == __file__
    declaration = Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert declaration == '@event(topic="orders", key="order_id")'


def test_name_topic_and_format_are_kept_as_declared() -> None:
    topic = Topic("stock", partitions=3, retention_s=60, retention_bytes=1)

    @event(topic=topic, name="stock.changed.v1", format="avro")
    class StockChanged(msgspec.Struct):
        sku: str

    declared = event_type(StockChanged)
    assert (declared.name, declared.format) == ("stock.changed.v1", "avro")
    assert declared.topic is topic


def test_an_event_without_fields_can_be_marked() -> None:
    @event(topic="beats")
    class Beat(msgspec.Struct):
        pass

    assert fields_of(Beat) == ()
    assert event_type(Beat).key(Beat()) is None


def test_a_subclass_of_a_marked_class_is_not_marked() -> None:
    class Express(OrderCreated, frozen=True):
        pass

    with pytest.raises(ConfigError, match=r"(?s)Express.*only that class itself.*put @event"):
        event_type(Express)


def test_a_subclass_can_be_marked_itself_and_leaves_its_parent_alone() -> None:
    @event(topic="express")
    class Express(OrderCreated, frozen=True):
        pass

    assert event_type(Express).topic.name == "express"
    assert event_type(OrderCreated).topic.name == "orders"


def test_a_copy_of_a_marked_class_is_not_marked() -> None:
    copy = type("Copy", (), dict(vars(OrderPaid)) | {"__slots__": ()})
    with pytest.raises(ConfigError, match="unmarked"):
        event_type(copy)


def test_an_unmarked_class_is_refused_with_how_to_mark_it() -> None:
    class Plain(msgspec.Struct):
        pass

    with pytest.raises(ConfigError, match=r'Plain.*unmarked.*@event\(topic="...", key="..."\)'):
        event_type(Plain)
    with pytest.raises(ConfigError, match="expected a class"):
        event_type(OrderCreated("o-1"))  # type: ignore[arg-type] # the mistake under test


class Point(NamedTuple):
    x: int


class Options(TypedDict):
    x: int


class NotYet:
    x: int


@dataclass
class Parent:
    x: int


class PlainChild(Parent):
    pass


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Point, "@event on Point: .*NamedTuple.*without its fields' names"),
        (Options, "@event on Options: .*TypedDict.*plain dicts"),
        (NotYet, "@event on NotYet: .*none of these yet.*put @event above"),
        (PlainChild, "@event on PlainChild: .*none of these yet"),
        (print, "@event: .*got <built-in function print>; put it on a class"),
    ],
)
def test_what_is_no_event_type_is_refused_with_the_reason(cls: type, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        event(topic="t")(cls)


def test_a_key_that_is_no_field_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"Typo: .*'oder_id'\. Did you mean 'order_id'\?"):

        @event(topic="t", key="oder_id")
        class Typo(msgspec.Struct):
            order_id: str

    with pytest.raises(ConfigError, match=r"NoSuch: .*'zzz'\. Known: order_id, sku"):

        @event(topic="t", key="zzz")
        @dataclass
        class NoSuch:
            order_id: str
            sku: str


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topic": "a b"}, "Wrong: Topic name: expected 1 to 200"),
        ({"topic": 7}, "expected topic to be a str or a Topic, got 7"),
        ({"topic": "t", "key": 7}, "expected key to be the name of a field or a function"),
        ({"topic": "t", "name": ""}, "expected name to be"),
        ({"topic": "t", "name": "a b"}, "expected name to be"),
        ({"topic": "t", "format": "xml"}, "expected format to be .*'xml'"),
    ],
)
def test_wrong_options_are_refused_when_the_class_is_decorated(
    options: dict[str, object], reason: str
) -> None:
    class Wrong(msgspec.Struct):
        x: int

    mark: Callable[..., Callable[[type], type]] = event
    with pytest.raises(ConfigError, match=reason):
        mark(**options)(Wrong)


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "ä", "x" * 201, ".", "..", "orders.billing.dlq", "a\n", 7, None]
)
def test_a_topic_with_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Topic name: expected .*; "):
        Topic(name)


@pytest.mark.parametrize("option", ["partitions", "retention_s", "retention_bytes"])
@pytest.mark.parametrize("number", [0, -1, True, "1", float("nan"), float("inf")])
def test_a_topic_with_a_wrong_number_is_refused(option: str, number: object) -> None:
    build: Callable[..., Topic] = Topic
    with pytest.raises(ConfigError, match=f"Topic 't': expected {option} to be"):
        build("t", **{option: number})


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ä-1", "ä-1".encode()),
        ("", b""),
        (b"\xff\x00", b"\xff\x00"),
        (42, b"42"),
        (-(2**70), b"-1180591620717411303424"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
        (Weight.HEAVY, b"7"),
        (Colour.RED, b"red"),
        (OldColour.RED, b"red"),
    ],
)
def test_keys_are_the_utf8_of_their_text(key: str | bytes | int | UUID, expected: bytes) -> None:
    found = key_bytes(key)
    assert found == expected
    assert type(found) is bytes


@pytest.mark.parametrize("key", [True, None, 1.5, bytearray(b"x"), ("a",), object()])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(
        EventRefused, match=rf"expected a str, .* got {type(key).__name__}; convert"
    ):
        key_bytes(key)


def test_a_key_that_utf8_cannot_carry_is_refused() -> None:
    with pytest.raises(EventRefused, match="lone surrogate"):
        key_bytes("\ud800")


def test_the_key_comes_from_its_field() -> None:
    assert event_type(OrderCreated).key(OrderCreated("o-1")) == b"o-1"
    assert event_type(OrderReturned).key(OrderReturned(order_id=UUID(int=1)))[-2:] == b"01"  # type: ignore[index] # declared, so never None
    assert event_type(OrderPaid).key(OrderPaid("o-1")) is None


def test_the_key_comes_from_its_function() -> None:
    @event(topic="t", key=lambda order: order.lines[0])
    class Ordered(msgspec.Struct):
        lines: list[str]

    assert event_type(Ordered).key(Ordered(["l-1"])) == b"l-1"


def test_a_declared_key_without_a_value_is_refused_by_name() -> None:
    @event(topic="t", key="customer")
    class Seen(msgspec.Struct):
        customer: str | None = None

    with pytest.raises(EventRefused, match=r"Seen\.customer, its key: .* got NoneType"):
        event_type(Seen).key(Seen())

    @event(topic="t", key=lambda seen: seen.customer)
    class SeenAgain(msgspec.Struct):
        customer: str | None = None

    with pytest.raises(EventRefused, match=r"key function of .*SeenAgain, its key: .* NoneType"):
        event_type(SeenAgain).key(SeenAgain())
