"""What an event is: a class that is marked with its topic, its key and its name.

`@event` only declares. It keeps one `EventType` on the class itself and changes nothing else, so
that a marked class stays an ordinary class which tests, scripts and other frameworks can use.
What depends on the annotations (the codecs) is built at start, so that they may refer to classes
that are defined further down.
"""

import dataclasses
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Never, Protocol, TypeVar, cast, is_typeddict
from uuid import UUID

from eventlane.errors import ConfigError, EventRefused
from eventlane.topic import Topic
from eventlane.wording import did_you_mean

__all__ = ["EventType", "Key", "Topic", "event", "event_type", "fields_of", "key_bytes"]

T = TypeVar("T")

Key = str | bytes | int | UUID
"""What may be a key. On the wire it is UTF-8 of `str()`, and bytes as they are."""

_DECLARATION = "__eventlane_event__"
_EVENT_NAME = re.compile(r"\S{1,200}")


@dataclass(frozen=True, slots=True, eq=False)
class EventType(Generic[T]):
    """What `@event` declared for one class. There is one per class, compared by identity."""

    cls: type[T]
    name: str
    """What the messages say in `ce_type`."""
    topic: Topic
    key: Callable[[T], bytes | None]
    """Gives an event's key; None only if the type declares none.

    Raises `EventRefused` if the declared key is None or no `Key`.
    """
    keys: Callable[[Sequence[T]], Iterable[bytes | None]]
    """Gives the keys of several events: see `key`."""
    format: Literal["json", "avro"] | None
    """None: the app's format."""
    declared_at: str
    """`file:line` of the declaration, for messages about it."""


class _Mark(Protocol):
    """Takes a class and returns the same class, so that type checkers keep its type.

    `event` could not say it with one type for `key` and the class: the class is not known yet
    where a lambda stands, so checkers would refuse the lambda's body. `Callable[[Never], Key]` is
    every function of one argument, and lets a lambda read any attribute.
    """

    def __call__(self, cls: type[T], /) -> type[T]: ...


def event(
    *,
    topic: str | Topic,
    key: str | Callable[[Never], Key] | None = None,
    name: str | None = None,
    format: Literal["json", "avro"] | None = None,
) -> _Mark:
    """Marks a class as an event type. Stands above the decorator that makes it a dataclass.

    It marks the class itself, never its subclasses: a subclass is another event and says so.

    Args:
        topic: where its events go; a `Topic` to say its settings too.
        key: the field that orders them, or a function of the event. Events of one topic and key
            are handled in the order in which they were published. None: no order among them.
        name: what messages call the type; the class's name by default. Others read it, so
            keep it when the class is renamed.
        format: how it is serialised; the app's format by default.

    Returns:
        A decorator that returns the class unchanged.

    Raises:
        ConfigError: when it decorates something that is no event type (a msgspec.Struct, a
            dataclass, an attrs class or a pydantic model), or an option does not fit the class.
    """
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None
    declared_at = f"{caller.f_code.co_filename}:{caller.f_lineno}" if caller else "?:0"

    def mark(cls: type[T], /) -> type[T]:
        where = _name_of(cls)
        if not _is_class(cls):
            raise ConfigError(f"@event: {_EXPECTED_KIND}, got {where}; put it on a class")
        _refuse_other_kinds(cls, where)
        declaration = EventType(
            cls=cls,
            name=_checked_name(cls.__name__ if name is None else name, where),
            topic=_checked_topic(topic, where),
            key=(key_of := _compiled_key(cls, key, where)),
            keys=_compiled_keys(key, key_of),
            format=_checked_format(format, where),
            declared_at=declared_at,
        )
        setattr(cls, _DECLARATION, declaration)
        return cls

    return mark


def event_type(cls: type[T]) -> EventType[T]:
    """Gives what `@event` declared for a class.

    Raises:
        ConfigError: the class itself is not marked.
    """
    # In the class's own dict, because an inherited declaration would send a subclass's events
    # under its parent's name. The identity tells a copy apart: `slots=True` builds a second class
    # from the first one's dict.
    declaration: EventType[T] | None = getattr(cls, "__dict__", {}).get(_DECLARATION)
    if declaration is None or declaration.cls is not cls:
        raise ConfigError(_unmarked(cls))
    return declaration


def fields_of(cls: type) -> tuple[str, ...]:
    """Gives the names of a type's fields, in order.

    Raises:
        ConfigError: it is no msgspec.Struct, dataclass, attrs class or pydantic model.
    """
    names: Iterable[str] | None = getattr(cls, "__struct_fields__", None)
    if hasattr(cls, "__attrs_attrs__"):
        names = [attribute.name for attribute in getattr(cls, "__attrs_attrs__", ())]
    elif hasattr(cls, "__dataclass_fields__"):
        # Not its own dict, which holds class variables too.
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__pydantic_validator__"):
        names = getattr(cls, "model_fields", None)
    if names is None:
        raise ConfigError(f"{_name_of(cls)}: {_EXPECTED_KIND}, got another class; make it one")
    return tuple(names)


def key_bytes(key: Key) -> bytes:
    """Gives a key's bytes: UTF-8 of `str()`, and bytes as they are.

    Raises:
        EventRefused: it is no `str`, `bytes`, `int` or `UUID`.
    """
    # Text first, because this runs for every event that is published.
    if isinstance(key, str):
        try:
            # Not str(key): of an Enum that is a str, it gives the member's name.
            return str.encode(key)
        except UnicodeEncodeError as error:
            raise EventRefused(
                "key: expected text that UTF-8 can carry, got a str with a lone surrogate; "
                "repair it where it was read"
            ) from error
    if isinstance(key, bytes):
        return bytes(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return b"%d" % key
    if isinstance(key, UUID):
        return str(key).encode()
    raise EventRefused(f"key: {_expected_key(key)}")


_EXPECTED_KIND = "expected a msgspec.Struct, a dataclass, an attrs class or a pydantic model"


def _expected_key(key: object) -> str:
    return (
        f"expected a str, bytes, int or UUID, got {type(key).__name__}; convert it to one of "
        "these, always in the same way, because equal keys are what keeps events in order"
    )


def _is_class(cls: object) -> bool:
    return isinstance(cls, type)


def _name_of(cls: object) -> str:
    return cls.__qualname__ if isinstance(cls, type) else repr(cls)


def _no_key(_event: object) -> None:
    return None


def _compiled_key(
    cls: type[T], key: str | Callable[[Never], Key] | None, where: str
) -> Callable[[T], bytes | None]:
    if key is None:
        return _no_key
    read: Callable[[T], Key]
    if isinstance(key, str):
        _refuse_unknown_field(cls, key, where)
        read = operator.attrgetter(key)
        source = f"{where}.{key}"
    elif callable(key):
        read = cast("Callable[[T], Key]", key)
        source = f"the key function of {where}"
    else:
        raise ConfigError(
            f"@event on {where}: expected key to be the name of a field or a function of the "
            f"event, got {key!r}"
        )

    def compiled(event: T) -> bytes:
        value = read(event)
        try:
            return key_bytes(value)
        except EventRefused as error:
            raise EventRefused(f"{source}, its {error}") from error.__cause__

    return compiled


def _compiled_keys(
    key: str | Callable[[Never], Key] | None, key_of: Callable[[T], bytes | None]
) -> Callable[[Sequence[T]], Iterable[bytes | None]]:
    if not isinstance(key, str):
        return lambda events: map(key_of, events)
    read = operator.attrgetter(key)

    def keys(events: Sequence[T]) -> Iterable[bytes | None]:
        values = list(map(read, events))
        if set(map(type, values)) == {str}:
            try:
                # Text needs nothing else: 60 ns less for each (benchmarks, publish_many).
                return list(map(str.encode, values))
            except UnicodeEncodeError:
                pass  # refused below, in words
        return map(key_of, events)

    return keys


def _refuse_unknown_field(cls: type, field: str, where: str) -> None:
    names = fields_of(cls)
    if field not in names:
        raise ConfigError(
            f"@event on {where}: expected key to name one of its fields, got {field!r}. "
            f"{did_you_mean(field, names)}"
        )


def _refuse_other_kinds(cls: type[object], where: str) -> None:
    if is_typeddict(cls):
        raise ConfigError(
            f"@event on {where}: {_EXPECTED_KIND}, got a TypedDict; its instances are plain "
            "dicts, which cannot be recognised when they are published (as a field's type it is "
            "welcome)"
        )
    if issubclass(cls, tuple):
        raise ConfigError(
            f"@event on {where}: {_EXPECTED_KIND}, got a NamedTuple; it is written as a JSON "
            "array without its fields' names, so no field could ever be added (as a field's type "
            "it is welcome)"
        )
    # A plain subclass inherits the marks of attrs and dataclasses, and not their methods.
    whole = hasattr(cls, "__struct_fields__") or hasattr(cls, "__pydantic_validator__")
    own = cls.__dict__
    if not whole and "__attrs_attrs__" not in own and "__dataclass_fields__" not in own:
        raise ConfigError(
            f"@event on {where}: {_EXPECTED_KIND}, got a class that is none of these yet; if it "
            "has @dataclass or @attrs.define, put @event above that line, else add one"
        )


def _checked_name(name: object, where: str) -> str:
    if isinstance(name, str) and name.isprintable() and _EVENT_NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"@event on {where}: expected name to be 1 to 200 printable characters without spaces, "
        f"got {name!r}; leave it out for {where!r}"
    )


def _checked_topic(topic: object, where: str) -> Topic:
    if isinstance(topic, Topic):
        return topic
    if isinstance(topic, str):
        try:
            return Topic(topic)
        except ConfigError as error:
            raise ConfigError(f"@event on {where}: {error}") from None
    raise ConfigError(f"@event on {where}: expected topic to be a str or a Topic, got {topic!r}")


def _checked_format(
    format: Literal["json", "avro"] | None, where: str
) -> Literal["json", "avro"] | None:
    if format in (None, "json", "avro"):
        return format
    raise ConfigError(
        f"@event on {where}: expected format to be 'json', 'avro' or None, got {format!r}; leave "
        "it out for the app's format"
    )


def _unmarked(cls: object) -> str:
    where = _name_of(cls)
    if not isinstance(cls, type):
        return f"expected a class marked with @event, got {where}; pass the event's class"
    for parent in cls.__mro__[1:]:
        if _DECLARATION in vars(parent):
            return (
                f"{where}: expected a class marked with @event, got a subclass of one; @event on "
                f"{_name_of(parent)} marks only that class itself: put "
                f'@event(topic="...") above {where} too, or publish {_name_of(parent)}'
            )
    return (
        f"{where}: expected a class marked with @event, got an unmarked one; put "
        f'@event(topic="...", key="...") above its definition'
    )
