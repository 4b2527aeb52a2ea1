"""JSON, for all events: what is written is read back, and what is not is refused."""

import contextlib
import dataclasses
import datetime
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlane.errors import NotSerialisable, Undecodable
from eventlane.serde.json import JsonCodec
from eventlane.serde.plain import plain_check


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Size(TypedDict):
    width: int


class Place(NamedTuple):
    north: float
    name: str


class Card(msgspec.Struct, frozen=True, tag=True):
    number: str


class Cash(msgspec.Struct, frozen=True, tag=True):
    amount: int


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    number: int
    real: float
    flag: bool
    raw: bytes
    maybe: str | None
    colour: Colour
    level: Level
    day: datetime.date
    clock: datetime.time
    naive: datetime.datetime
    aware: datetime.datetime
    span: datetime.timedelta
    decimal: Decimal
    identifier: UUID
    many: list[int]
    pair: tuple[int, str]
    row: tuple[Decimal, ...]
    unique: set[str]
    frozen: frozenset[int]
    table: dict[str, list[int]]
    numbered: dict[int, str]
    size: Size
    place: Place
    fixed: Literal["a", "b"]


class Nested(msgspec.Struct, frozen=True):
    inside: Struct
    several: list[Struct]
    payment: Card | Cash
    maybe: Struct | None = None


fields: dict[str, Any] = dict(Struct.__annotations__)
Data = dataclasses.make_dataclass("Data", list(fields.items()), frozen=True, kw_only=True)
Attrs = attrs.make_class(
    "Attrs", {name: attrs.field(type=kind) for name, kind in fields.items()}, frozen=True
)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    text: str
    number: int
    real: float
    flag: bool
    raw: bytes
    maybe: str | None
    colour: Colour
    level: Level
    day: datetime.date
    naive: datetime.datetime
    identifier: UUID
    decimal: Decimal
    many: list[int]
    pair: tuple[int, str]
    unique: set[str]
    table: dict[str, list[int]]
    numbered: dict[int, str]
    fixed: Literal["a", "b"]


texts = st.text()
offsets = st.integers(-1439, 1439).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)
values: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "number": st.integers(-(2**63), 2**64 - 1),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
    "raw": st.binary(),
    "maybe": st.none() | texts,
    "colour": st.sampled_from(Colour),
    "level": st.sampled_from(Level),
    "day": st.dates(),
    "clock": st.times(),
    "naive": st.datetimes(),
    "aware": st.datetimes(
        min_value=datetime.datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
        max_value=datetime.datetime(9998, 1, 1),  # noqa: DTZ001 - the same
        timezones=offsets,
    ),
    "span": st.timedeltas(datetime.timedelta(days=-10_000), datetime.timedelta(days=10_000)),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False),
    "identifier": st.uuids(),
    "many": st.lists(st.integers(), max_size=3),
    "pair": st.tuples(st.integers(), texts),
    "row": st.lists(st.decimals(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    "unique": st.sets(texts, max_size=3),
    "frozen": st.frozensets(st.integers(), max_size=3),
    "table": st.dictionaries(texts, st.lists(st.integers(), max_size=2), max_size=3),
    "numbered": st.dictionaries(st.integers(), texts, max_size=3),
    "size": st.fixed_dictionaries({"width": st.integers()}),
    "place": st.builds(Place, st.floats(allow_nan=False, allow_infinity=False), texts),
    "fixed": st.sampled_from(["a", "b"]),
}


def instances(cls: Any, *names: str) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({name: values[name] for name in names}).map(
        lambda chosen: cls(**chosen)
    )


structs = instances(Struct, *values)
nested = st.builds(
    Nested,
    structs,
    st.lists(structs, max_size=2),
    st.builds(Card, texts) | st.builds(Cash, st.integers()),
    st.none() | structs,
)
models = instances(Model, *Model.model_fields)
events = structs | nested | instances(Data, *values) | instances(Attrs, *values) | models

CODEC = JsonCodec()
TYPES: list[Any] = [Struct, Nested, Data, Attrs, Model]
ENCODERS = {cls: CODEC.encoder(cls) for cls in TYPES}
DECODERS = {cls: CODEC.decoder(cls) for cls in TYPES}


@given(events)
def test_every_event_comes_back_from_its_bytes(event: Any) -> None:
    cls = type(event)
    assert DECODERS[cls](ENCODERS[cls](event)) == event


@given(st.binary() | st.text().map(str.encode), st.sampled_from(TYPES))
def test_reading_any_bytes_raises_nothing_but_undecodable(value: bytes, cls: Any) -> None:
    with contextlib.suppress(Undecodable):
        DECODERS[cls](value)


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(list(values)) | texts, inner, max_size=5)
    ),
)


@given(documents, st.sampled_from(TYPES))
def test_reading_any_json_raises_nothing_but_undecodable(document: Any, cls: Any) -> None:
    with contextlib.suppress(Undecodable):
        DECODERS[cls](msgspec.json.encode(document))


@given(structs, st.data())
def test_reading_a_damaged_event_raises_nothing_but_undecodable(
    event: Struct, data: st.DataObject
) -> None:
    value = bytearray(ENCODERS[Struct](event))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Undecodable):
        DECODERS[Struct](bytes(value))


# One value of each kind, and the fields whose declared type it is.
STRANGERS: list[tuple[Any, set[str]]] = [
    ("stranger", {"text", "maybe"}),
    (b"stranger", {"raw"}),
    (7, {"number", "real"}),
    (7.5, {"real"}),
    (True, {"flag"}),
    (None, {"maybe"}),
    (float("nan"), set()),
    (float("-inf"), set()),
    (Decimal("7.5"), {"decimal"}),
    (UUID(int=7), {"identifier"}),
    (datetime.date(2026, 1, 1), {"day"}),
    (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), {"naive", "aware"}),
    (datetime.timedelta(7), {"span"}),
    (Colour.RED, {"colour"}),
    ([object()], set()),
    ({"strange": object()}, set()),
    (object(), set()),
    (Cash(7), set()),
    ("\ud800", set()),
]
ONE: dict[str, Any] = {
    "text": "t", "number": 1, "real": 1.0, "flag": True, "raw": b"r", "maybe": None,
    "colour": Colour.RED, "level": Level.LOW, "day": datetime.date(2026, 1, 1),
    "clock": datetime.time(1), "naive": datetime.datetime(2026, 1, 1),  # noqa: DTZ001 - naive is meant
    "aware": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "span": datetime.timedelta(1),
    "decimal": Decimal(1), "identifier": UUID(int=1), "many": [1], "pair": (1, "p"),
    "row": (Decimal(1),), "unique": {"u"}, "frozen": frozenset({1}), "table": {"t": [1]},
    "numbered": {1: "n"}, "size": {"width": 1}, "place": Place(1.0, "p"), "fixed": "a",
}  # fmt: skip


@pytest.mark.parametrize("cls", [Struct, Data, Attrs])
@pytest.mark.parametrize("name", list(ONE))
def test_a_value_of_another_type_is_refused_and_its_field_named(cls: Any, name: str) -> None:
    for stranger, homes in STRANGERS:
        event = cls(**ONE | {name: stranger})
        if name in homes:
            assert DECODERS[cls](ENCODERS[cls](event)) == event
            continue
        with pytest.raises(NotSerialisable) as refused:
            ENCODERS[cls](event)
        assert str(refused.value).startswith(f"{cls.__qualname__}.{name}")


@pytest.mark.parametrize("name", list(Model.model_fields))
def test_a_model_with_a_value_of_another_type_is_refused_and_its_field_named(name: str) -> None:
    good = Model(**{field: ONE[field] for field in Model.model_fields})
    for stranger, homes in STRANGERS:
        if name in homes or (name in {"number", "real"} and isinstance(stranger, bool | Decimal)):
            continue  # pydantic itself writes the equal number where the model says one
        with pytest.raises(NotSerialisable) as refused:
            ENCODERS[Model](good.model_copy(update={name: stranger}))
        assert str(refused.value).startswith(f"Model.{name}")


@dataclass
class Counted:
    """A dataclass that is not frozen, with defaults."""

    number: int = 0
    names: list[str] = field(default_factory=list)


@given(st.builds(Counted))
def test_a_dataclass_with_defaults_comes_back(event: Counted) -> None:
    assert CODEC.decoder(Counted)(CODEC.encoder(Counted)(event)) == event


class Plain(msgspec.Struct):
    text: str
    number: int
    share: float
    flag: bool
    note: str | None


class Ruled(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(gt=0)]


class Checked(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        self.number += 1


class Nested(msgspec.Struct):
    inner: Plain


anything = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary(), st.decimals()
)


@given(st.tuples(anything, anything, anything, anything, anything))
def test_a_plain_event_that_gets_a_quick_yes_comes_back_as_it_is(values: tuple[Any, ...]) -> None:
    check = plain_check(Plain)
    assert check is not None
    event = Plain(*values)
    if check([event]):
        assert msgspec.json.decode(msgspec.json.encode(event), type=Plain) == event


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_an_event_of_the_right_types_gets_a_quick_yes(
    text: str, number: int, share: float, flag: bool
) -> None:
    check = plain_check(Plain)
    assert check is not None
    assert check([Plain(text, number, share, flag, None), Plain(text, number, share, flag, text)])


@pytest.mark.parametrize("cls", [Ruled, Checked, Nested])
def test_a_type_with_rules_or_parts_of_its_own_gets_no_quick_yes(cls: type) -> None:
    assert plain_check(cls) is None
