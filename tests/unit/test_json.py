"""JSON: what is written, and which words an event or bytes are refused with."""

import datetime
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar, cast
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from eventlane.errors import ConfigError, NotSerialisable, Undecodable
from eventlane.serde import Codec
from eventlane.serde.json import JsonCodec

T = TypeVar("T")


class Line(msgspec.Struct, frozen=True):
    sku: str
    price: Decimal
    weight: float = 1.0


class Size(TypedDict, total=False):
    width: int
    height: int


class Place(NamedTuple):
    north: float
    east: float


class State(Enum):
    NEW = "new"
    PAID = "paid"


class Card(msgspec.Struct, frozen=True, tag=True):
    number: str


class Cash(msgspec.Struct, frozen=True, tag=True):
    amount: int


class OrderCreated(msgspec.Struct, frozen=True, kw_only=True):
    order_id: str
    lines: list[Line] = []
    quantity: Annotated[int, msgspec.Meta(ge=1)] = 1
    discount: float | None = None
    state: State = State.NEW
    tags: dict[str, int] = {}
    size: Size = {}
    place: Place = Place(0, 0)
    payment: Card | Cash = Cash(1)
    at: datetime.datetime | None = None
    currency: Literal["eur", "usd"] = "eur"
    notes: Sequence[str] = ()
    more: dict[str, Any] = {}


LINE = Line("s", Decimal("1.50"))


def encoded(event: T) -> bytes:
    return JsonCodec().encoder(type(event))(event)


def came_back(event: T) -> T:
    return JsonCodec().decoder(type(event))(encoded(event))


def test_json_is_a_codec() -> None:
    codec: Codec = JsonCodec()
    assert codec.content_type == "application/json"


def test_an_event_is_the_object_of_its_fields() -> None:
    assert encoded(LINE) == b'{"sku":"s","price":"1.50","weight":1.0}'


def order(**fields: Any) -> OrderCreated:
    return OrderCreated(order_id="o-1", **fields)


def line(price: Any = Decimal(1), weight: Any = 1.0) -> Line:
    return Line("s", price, weight)


LOOP: list[Any] = []
LOOP.append(LOOP)

HERE = __name__
WRONG = [
    (
        order(lines=[LINE, LINE, line(price=object())]),
        ".lines[2].price: expected decimal.Decimal, got object; ",
    ),
    (
        order(lines=[LINE, line(price="1.5")]),
        ".lines[1].price: expected decimal.Decimal, got str; ",
    ),
    (
        order(lines=[line(weight=float("inf"))]),
        ".lines[0].weight: expected a finite number, got inf; ",
    ),
    (order(lines=None), ".lines: expected list["),
    (order(lines=[{"sku": "s", "price": "1"}]), f".lines[0]: expected {HERE}.Line, got dict; "),
    (order(quantity="two"), ".quantity: expected int, got str; "),
    (order(quantity=True), ".quantity: expected int, got bool; "),
    (order(quantity=2.0), ".quantity: expected int, got float; "),
    (order(quantity=0), ".quantity: expected int >= 1, got another; "),
    (order(discount=float("nan")), ".discount: expected a finite number, got nan; "),
    (order(state="new"), f".state: expected {HERE}.State, got str; "),
    (order(state="old"), f".state: expected {HERE}.State, got str; "),
    (order(tags={"secret": "one"}), ".tags[...]: expected int, got str; "),
    (order(tags={1: 1}), ".tags (a key): expected str, got int; "),
    (order(size={"width": "wide"}), ".size.width: expected int, got str; "),
    (order(size={"widht": 1}), ".size: expected a value that JSON gives back as it is, got dict; "),
    (order(place=Place(1, cast("float", "x"))), ".place.east: expected float, got str; "),
    (order(payment=Card(cast("str", 7))), ".payment.number: expected str, got int; "),
    (order(payment=LINE), ".payment: expected "),
    (order(currency="chf"), ".currency: expected Literal['eur', 'usd'], got str; "),
    (order(notes=("a", 1)), ".notes[1]: expected str, got int; "),
    (
        order(more={"a": LOOP}),
        ".more[...][0]: expected a tree of values, got one that contains itself; ",
    ),
    (
        order(more={"a": {"b": uuid4()}}),
        ".more[...][...]: expected a value that JSON gives back as it is",
    ),
    (OrderCreated(order_id=cast("str", b"o-1")), ".order_id: expected str, got bytes; "),
    (OrderCreated(order_id=cast("str", uuid4())), ".order_id: expected str, got uuid.UUID; "),
    (
        OrderCreated(order_id="\ud800"),
        ".order_id: expected text that UTF-8 can carry, got a lone surrogate; ",
    ),
]


@pytest.mark.parametrize(("event", "reason"), WRONG)
def test_an_event_that_cannot_be_read_back_is_refused_and_the_field_named(
    event: OrderCreated, reason: str
) -> None:
    with pytest.raises(NotSerialisable) as refused:
        encoded(event)
    assert str(refused.value).startswith("OrderCreated" + reason)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("price", [7.5, 7, True])
def test_a_number_in_a_field_of_decimals_is_refused_though_it_may_be_equal(price: Any) -> None:
    with pytest.raises(
        NotSerialisable, match=r"price: expected decimal\.Decimal, got (flo|int|bo)"
    ):
        encoded(line(price=price))


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(NotSerialisable, match="nested less deeply"):
        encoded(order(more={"deep": deep}))


def test_a_time_whose_offset_has_seconds_is_refused_with_where_such_zones_come_from() -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=19, seconds=32))
    with pytest.raises(NotSerialisable, match=r"\.at: expected a UTC offset of whole .*pytz"):
        encoded(order(at=datetime.datetime(2026, 1, 1, tzinfo=zone)))


def test_times_inside_the_daylight_saving_overlap_come_back() -> None:
    at = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    found = came_back(order(at=at)).at
    assert found is not None
    assert found.isoformat() == at.isoformat()


def test_a_subclass_in_a_field_is_refused_because_its_own_fields_would_be_lost() -> None:
    class LongLine(Line, frozen=True):
        colour: str = "red"

    with pytest.raises(NotSerialisable, match=r"lines\[0\]: expected .*Line, got .*LongLine"):
        encoded(order(lines=[LongLine("s", Decimal(1))]))


def test_a_tuple_may_stand_for_a_sequence() -> None:
    assert list(came_back(order(notes=("a", "b"))).notes) == ["a", "b"]


def test_integers_beyond_64_bits_come_back_exactly() -> None:
    for number in (2**53 + 1, 2**63 - 1, 2**64, 10**40):
        assert came_back(order(quantity=number)).quantity == number


def test_events_that_compare_by_identity_are_compared_by_their_fields() -> None:
    @dataclass(eq=False)
    class Moved:
        item: str
        steps: dict[str, int]

    found = came_back(Moved("i", {"a": 1}))
    assert (found.item, found.steps) == ("i", {"a": 1})
    with pytest.raises(NotSerialisable, match=r"Moved\.steps\[\.\.\.\]: expected int, got str"):
        encoded(Moved("i", {"a": cast("int", "1")}))


def test_what_a_type_checks_by_itself_is_checked_when_it_is_written_and_read() -> None:
    @dataclass
    class Ranged:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"secret {self.low}")
            if self.low == self.high:
                raise LookupError("secret too")

    wrong = Ranged(1, 2)
    wrong.low = 3
    with pytest.raises(NotSerialisable, match=r"Ranged: expected .* own checks pass, got ValueE"):
        encoded(wrong)
    decode = JsonCodec().decoder(Ranged)
    for text, name in ((b'{"low":3,"high":2}', "ValueError"), (b'{"low":2,"high":2}', "LookupE")):
        with pytest.raises(Undecodable, match=f"own checks pass, got {name}") as refused:
            decode(text)
        assert "secret" not in str(refused.value)
        assert refused.value.stage == "validate"


def test_a_type_that_does_not_read_what_it_writes_is_refused() -> None:
    @dataclass
    class Taxed:
        total: int

        def __post_init__(self) -> None:
            self.total += 1

    with pytest.raises(
        NotSerialisable, match=r"Taxed: expected a value that JSON gives back as it is, got .*Taxed"
    ):
        encoded(Taxed(1))


GOOD = b'{"order_id":"o-1"}'


@pytest.mark.parametrize(
    ("value", "stage", "reason"),
    [
        (b"", "decode", ": expected JSON in UTF-8"),
        (b"\xff", "decode", ": expected JSON in UTF-8"),
        (GOOD + b"!", "decode", ": expected JSON in UTF-8"),
        (b'{"order_id":7,', "decode", ": expected JSON in UTF-8"),
        (b"[" * 100_000, "decode", ": expected JSON in UTF-8"),
        (b"null", "validate", ": expected object, got null"),
        (b"{}", "validate", ".order_id: expected a value, got none"),
        (b'{"order_id":7}', "validate", ".order_id: expected str, got int"),
        (b'{"order_id":"","quantity":0}', "validate", ".quantity: expected int >= 1, got another"),
        (b'{"order_id":"","state":"secret"}', "validate", ".state: expected one of the declared"),
        (b'{"order_id":"","currency":"secret"}', "validate", ".currency: expected one of the decl"),
        (b'{"order_id":"","payment":{"type":"secret"}}', "validate", ".payment.type: expected one"),
        (b'{"order_id":"","tags":{"secret":""}}', "validate", ".tags[...]: expected int, got str"),
        (
            b'{"order_id":"","lines":[{"sku":"","price":"secret"}]}',
            "validate",
            ".lines[0].price: expected a valid decimal string, got something else",
        ),
    ],
)
def test_bytes_that_are_no_event_are_undecodable_and_say_why_without_the_payload(
    value: bytes, stage: str, reason: str
) -> None:
    with pytest.raises(Undecodable) as refused:
        JsonCodec().decoder(OrderCreated)(value)
    assert str(refused.value).startswith("OrderCreated" + reason)
    assert "secret" not in str(refused.value)
    assert refused.value.stage == stage
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_unknown_fields_are_ignored_unless_the_type_forbids_them() -> None:
    assert JsonCodec().decoder(OrderCreated)(b'{"order_id":"o-1","new":1}') == order()

    class Closed(msgspec.Struct, forbid_unknown_fields=True):
        x: int

    with pytest.raises(Undecodable, match="only the fields of the type, got an unknown") as refused:
        JsonCodec().decoder(Closed)(b'{"x":1,"secret":1}')
    assert "secret" not in str(refused.value)


CARRIED = "expected a type that JSON can carry"


class Custom:
    pass


class Inner(msgspec.Struct):
    custom: list[Custom]


class One(msgspec.Struct):
    x: int


class Two(msgspec.Struct):
    x: int


class HasCustom(msgspec.Struct):
    inner: dict[str, Inner]


@dataclass
class HasUntagged:
    fine: int
    either: One | Two


@attrs.define
class HasUndefined:
    fine: int
    undefined: "list[NoSuchName]"  # type: ignore[name-defined] # noqa: F821 - the mistake under test


class HasUndefinedModel(pydantic.BaseModel):
    fine: int
    undefined: "list[NoSuchName]"  # type: ignore[name-defined] # noqa: F821 - the mistake under test


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (HasCustom, f"HasCustom.inner[...].custom[...]: {CARRIED}, got {HERE}.Custom; "),
        (HasUntagged, f"HasUntagged.either: {CARRIED}, got one that is refused: If a type union"),
        (HasUndefined, "HasUndefined.undefined: expected an annotation that can be evaluated, got"),
        (HasUndefinedModel, "HasUndefinedModel"),
    ],
)
def test_a_type_that_cannot_be_a_schema_is_refused_before_any_event(cls: type, reason: str) -> None:
    for build in (JsonCodec().encoder, JsonCodec().decoder):
        with pytest.raises(ConfigError) as refused:
            build(cls)
        assert str(refused.value).startswith(reason)


class Tree(msgspec.Struct):
    value: int
    children: list["Tree"] = []


class Box(msgspec.Struct, Generic[T]):
    content: T


class HasBox(msgspec.Struct):
    box: Box[int]


def test_types_that_hold_themselves_and_generic_types_can_be_carried() -> None:
    tree = Tree(1, [Tree(2), Tree(3, [Tree(4)])])
    assert came_back(tree) == tree
    tree.children[1].children[0].value = cast("int", "x")
    with pytest.raises(NotSerialisable, match=r"Tree\.children\[1\]\.children\[0\]\.value: exp"):
        encoded(tree)
    assert came_back(HasBox(Box(1))) == HasBox(Box(1))
    with pytest.raises(NotSerialisable, match=r"HasBox\.box"):
        encoded(HasBox(Box(cast("int", "x"))))


class Money(pydantic.BaseModel):
    amount: Decimal
    currency: str = pydantic.Field(default="eur", max_length=3)


class Paid(pydantic.BaseModel):
    order_id: UUID = pydantic.Field(alias="orderId")
    money: list[Money]
    quantity: int = pydantic.Field(default=1, ge=1)
    rate: float | None = None
    extra: dict[str, int] = {}
    _seen: object = pydantic.PrivateAttr(default_factory=object)

    @pydantic.computed_field  # type: ignore[prop-decorator] # as pydantic documents it
    @property
    def total(self) -> int:
        return len(self.money)


PAID = Paid(orderId=UUID(int=1), money=[Money(amount=Decimal(1))])


def test_a_pydantic_model_is_written_by_alias_and_as_it_reads_itself() -> None:
    assert encoded(PAID).startswith(b'{"orderId":"00000000-0000-0000-0000-000000000001"')
    assert b"total" not in encoded(PAID)
    assert came_back(PAID).money == PAID.money


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quantity": "two"}, ".quantity: expected int, got str; "),
        ({"quantity": "2"}, ".quantity: expected int, got str; "),
        ({"quantity": 0}, ".quantity: expected greater than or equal to 1, got int; "),
        ({"rate": float("nan")}, ".rate: expected a finite number, got nan; "),
        ({"extra": {"secret": "x"}}, ".extra[...]: expected int, got str; "),
        ({"money": [Money.model_construct(amount=object())]}, ".money[0].amount: expected decimal"),
        ({"money": [PAID]}, f".money[0]: expected {HERE}.Money, got"),
    ],
)
def test_a_pydantic_model_that_went_around_its_checks_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotSerialisable) as refused:
        encoded(PAID.model_copy(update=fields))
    assert str(refused.value).startswith("Paid" + reason)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "stage", "reason"),
    [
        (b"{", "decode", ": expected JSON"),
        (b"\xff", "decode", ": expected JSON"),
        (b"{}", "validate", ".orderId: expected a value, got none"),
        (
            b'{"orderId":"secret","money":[]}',
            "validate",
            ".orderId: expected a valid UUID, got str",
        ),
        (
            b'{"orderId":"00000000-0000-0000-0000-000000000001","money":[],"extra":{"secret":"x"}}',
            "validate",
            ".extra[...]: expected a valid integer, got str",
        ),
        (
            b'{"orderId":"00000000-0000-0000-0000-000000000001","money":[{"amount":1,"currency":"secret"}]}',
            "validate",
            ".money[0].currency: expected a value that passes 'string_too_long', got str",
        ),
    ],
)
def test_bytes_that_are_no_pydantic_model_say_why_without_the_payload(
    value: bytes, stage: str, reason: str
) -> None:
    with pytest.raises(Undecodable) as refused:
        JsonCodec().decoder(Paid)(value)
    assert str(refused.value).startswith("Paid" + reason)
    assert "secret" not in str(refused.value)
    assert refused.value.stage == stage


def test_an_attrs_class_is_checked_by_its_own_validators() -> None:
    @attrs.define
    class Weighed:
        grams: int = attrs.field(validator=attrs.validators.gt(0), on_setattr=[])

    wrong = Weighed(1)
    wrong.grams = 0
    with pytest.raises(NotSerialisable, match="Weighed: expected a value that its type's own ch"):
        encoded(wrong)


def test_a_field_computed_by_the_type_itself_comes_back() -> None:
    @dataclass
    class Summed:
        parts: list[int]
        total: int = field(init=False)

        def __post_init__(self) -> None:
            self.total = sum(self.parts)

    assert came_back(Summed([1, 2])).total == 3


def test_the_json_codec_imports_neither_pydantic_nor_attrs() -> None:
    code = (
        "import sys, msgspec; from eventlane.serde.json import JsonCodec\n"
        "class E(msgspec.Struct): x: int\n"
        "JsonCodec().encoder(E)(E(1))\n"
        "assert not {'pydantic', 'attr', 'attrs'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
