"""Why an event cannot be written: which field, what was expected, what came.

A part of an event is wrong if its own bytes do not give it back. So the field to name is found by
asking each part in turn, down to the deepest that fails. That is slow, and runs only when an
event has failed. Like all that ends in logs, the messages quote no value.
"""

import math
import typing
from collections.abc import Iterator
from datetime import datetime, time
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from eventlane.errors import ConfigError
from eventlane.event import fields_of
from eventlane.serde.unreadable import placed
from eventlane.serde.wire import annotations_of, is_a, is_pydantic, type_name, wire

__all__ = ["explain_event", "same"]

_ADVICE = "give it a value of that type, or change its annotation"


def explain_event(event: object, cls: type, error: Exception | None) -> str:
    """Says which part of an event does not come back from its bytes as it was.

    Args:
        event: what should be written.
        cls: the type that it is declared as.
        error: what writing it or reading it back raised; None if it came back changed.
    """
    try:
        found = _wrong(event, cls, cls.__qualname__, is_pydantic(cls), ())
    except RecursionError:
        return f"{cls.__qualname__}: expected values nested less deeply, got too many levels"
    # Each part may be right by itself; then it is the whole that its type does not read.
    return found or _not_given_back(cls.__qualname__, event, cls, error)


def same(sent: Any, received: Any) -> bool:
    """Whether a value came back as it was, part by part and with its types.

    For where `==` says too little: it may go by identity, and 7.5 equals a Decimal. As in Python's
    typing an int may stand for a float, and as in JSON a tuple for a list.
    """
    alike = type(sent) is type(received)
    if is_a(sent, list, tuple) and (alike or is_a(received, list)):
        return len(sent) == len(received) and all(map(same, sent, received))
    if not alike:
        return type(sent) is int and type(received) is float and sent == received
    if is_a(sent, dict):
        return bool(sent.keys() == received.keys()) and all(
            same(item, received[key]) for key, item in sent.items()
        )
    if is_a(sent, datetime, time):
        # Python calls a time in a daylight-saving overlap unequal to all times of other zones.
        clock = bool(sent.replace(tzinfo=None) == received.replace(tzinfo=None))
        return clock and bool(sent.utcoffset() == received.utcoffset())
    names = _fields(sent)
    if not names:
        return bool(sent == received)
    return all(same(getattr(sent, name, None), getattr(received, name, None)) for name in names)


def _wrong(value: Any, hint: Any, path: str, pydantic: bool, above: tuple[int, ...]) -> str:
    """Describes the deepest part of a value that does not come back, the first of several."""
    if id(value) in above:
        return f"{path}: expected a tree of values, got one that contains itself; cut the cycle"
    written: bytes | None = None
    error: Exception | None = None
    try:
        encode, decode = wire(hint, pydantic=pydantic)
        written = encode(value)
        if same(value, decode(written)):
            return ""
    except Exception as caught:  # whatever it is, this value does not come back
        error = caught
    if _fits(value, hint):
        for suffix, part, part_hint in _parts(value, hint):
            found = _wrong(part, part_hint, path + suffix, pydantic, (*above, id(value)))
            if found:
                return found
    fault = _fault(value, hint, error)
    if fault:
        return f"{path}: {fault}"
    return _not_given_back(path, value, hint, None if written is None else error)


def _not_given_back(path: str, value: object, hint: Any, error: Exception | None) -> str:
    if error is not None:
        return f"{placed(path, hint, error)}; {_ADVICE}"
    return (
        f"{path}: expected a value that JSON gives back as it is, got {type_name(type(value))}; "
        "convert it to a type that JSON has, or declare the type that it has"
    )


def _fault(value: Any, hint: Any, error: Exception | None) -> str:
    """Describes what is wrong with a value of which no part is, where the library cannot."""
    if isinstance(value, float) and not math.isfinite(value):
        return (
            f"expected a finite number, got {value}; JSON has neither NaN nor infinity: publish "
            "None in a field declared `float | None`"
        )
    if isinstance(error, UnicodeEncodeError):
        return "expected text that UTF-8 can carry, got a lone surrogate; repair it at its source"
    if isinstance(value, datetime | time) and _has_odd_offset(value):
        return (
            "expected a UTC offset of whole minutes, got one with seconds; take the zone from "
            "zoneinfo (pytz zones need localize())"
        )
    if not _fits(value, hint):
        return f"expected {type_name(hint)}, got {type_name(type(value))}; {_ADVICE}"
    return ""


def _has_odd_offset(value: datetime | time) -> bool:
    offset = value.utcoffset()
    return offset is not None and offset.total_seconds() % 60 != 0


def _parts(value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
    """Gives a value's parts: how the path goes on, the part, and the type declared for it."""
    if is_a(value, dict):
        yield from _dict_parts(value, hint)
    elif is_a(value, tuple) and hasattr(value, "_fields"):
        hints = annotations_of(type(value))
        for name in value._fields:
            yield f".{name}", getattr(value, name), hints.get(name, Any)
    elif is_a(value, list, tuple):
        items = _arguments(value, hint) or (Any,)
        for index, part in enumerate(value):
            yield f"[{index}]", part, items[min(index, len(items) - 1)]
    elif is_a(value, set, frozenset):
        items = _arguments(value, hint) or (Any,)
        for part in value:
            yield "[...]", part, items[0]
    else:
        hints = annotations_of(type(value))
        for name in _fields(value):
            yield f".{name}", getattr(value, name, None), hints.get(name, Any)


def _dict_parts(value: dict[Any, Any], hint: Any) -> Iterator[tuple[str, Any, Any]]:
    for option in _alternatives(hint):
        if typing.is_typeddict(option):
            for name, declared in annotations_of(option).items():
                if name in value:
                    yield f".{name}", value[name], declared
            return
    key_hint, item_hint = _arguments(value, hint) or (Any, Any)
    for key, item in value.items():
        # Keys are payload: the path does not show them.
        yield " (a key)", key, key_hint
        yield "[...]", item, item_hint


def _fields(value: object) -> tuple[str, ...]:
    try:
        return fields_of(type(value))
    except ConfigError:
        return ()


def _alternatives(hint: Any) -> list[Any]:
    """Gives the members of a union without their annotations; else the type alone."""
    origin = get_origin(hint)
    if origin is Annotated or typing.is_typeddict(origin):
        return _alternatives(get_args(hint)[0] if origin is Annotated else origin)
    if origin is Union or origin is UnionType:
        return [option for member in get_args(hint) for option in _alternatives(member)]
    return [NoneType if hint is None else hint]


def _fits(value: object, hint: Any) -> bool:
    """Whether a value's own type is the declared one; what it holds may still be wrong."""
    for option in _alternatives(hint):
        origin = get_origin(option)
        if option is Any or type(value) is option:
            return True
        if isinstance(origin, type) and isinstance(value, origin):
            return True
        if typing.is_typeddict(option) and type(value) is dict:
            return True
    return False


def _arguments(value: object, hint: Any) -> tuple[Any, ...]:
    """Gives the declared types of what a container holds; nothing if none are declared."""
    for option in _alternatives(hint):
        origin = get_origin(option)
        if isinstance(origin, type) and isinstance(value, origin):
            return tuple(argument for argument in get_args(option) if argument is not ...)
    return ()
