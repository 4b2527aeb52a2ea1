"""How each library writes and reads one type as JSON, and which types none can carry."""

import functools
import re
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec

from eventlane.errors import ConfigError

__all__ = [
    "Wire",
    "annotations_of",
    "is_a",
    "is_pydantic",
    "names_in_schema",
    "reads_one_form",
    "refuse_unusable",
    "type_name",
    "wire",
]


# What the libraries and the evaluation of annotations raise for a type that they cannot take
# (pydantic's own errors are subclasses of these).
_REFUSALS = (AttributeError, NameError, RuntimeError, SyntaxError, TypeError, ValueError)


class Wire(NamedTuple):
    """One type's functions. They raise whatever their library and the type's own code raise."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def is_pydantic(cls: Any) -> bool:
    """Whether pydantic made this class: a model, or one of its dataclasses."""
    return hasattr(cls, "__pydantic_validator__")


def wire(hint: Any, *, pydantic: bool) -> Wire:
    """Builds the functions of one type, by the library that shall carry it."""
    if not pydantic:
        return Wire(msgspec.json.Encoder().encode, msgspec.json.Decoder(hint).decode)
    # Imported here, so that `import eventlane` is fast, and works without pydantic.
    from pydantic import TypeAdapter  # noqa: PLC0415 - only for its own types

    adapter = TypeAdapter[Any](hint)
    # `round_trip` writes what the model itself reads: so without its computed fields.
    encode = functools.partial(
        adapter.serializer.to_json, by_alias=True, round_trip=True, warnings=False
    )
    return Wire(encode, adapter.validator.validate_json)


def is_a(value: object, *kinds: type) -> bool:
    """`isinstance`, after which type checkers still know that the value is of type Any."""
    return isinstance(value, kinds)


def annotations_of(cls: Any) -> dict[str, Any]:
    """Gives the evaluated types of a class's fields; nothing if they cannot be evaluated."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except _REFUSALS:  # without them a message says less
        return {}


def type_name(hint: Any) -> str:
    """Gives a type as its user would write it, with the module where it is not built in."""
    if get_origin(hint) is Annotated:
        return type_name(get_args(hint)[0])
    if isinstance(hint, type) and not get_args(hint):
        builtin = hint.__module__ == "builtins"
        return hint.__qualname__ if builtin else f"{hint.__module__}.{hint.__qualname__}"
    return str(hint).replace("typing.", "")


def names_in_schema(hint: Any) -> set[str]:
    """Gives the names and aliases of all fields in a pydantic type."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - only for its own types

    names: set[str] = set()
    unseen: list[Any] = [TypeAdapter[Any](hint).core_schema]
    while unseen:
        node = unseen.pop()
        if is_a(node, dict):
            if is_a(node.get("fields"), dict):
                names.update(node["fields"])
            names.update(str(node[name]) for name in ("name", "validation_alias") if name in node)
            unseen.extend(node.values())
        elif is_a(node, list, tuple):
            unseen.extend(node)
    return names


def refuse_unusable(cls: type) -> None:
    """Refuses a type of which no event could ever be written or read.

    Raises:
        ConfigError: an annotation cannot be evaluated, or is no type that JSON can carry; the
            class and the field are named.
    """
    pydantic = is_pydantic(cls)
    try:
        wire(cls, pydantic=pydantic)
        nodes = [] if pydantic else list(_schema_of(cls))
    except NameError as error:
        raise ConfigError(
            f"{_blamed_for_name(cls, error)}: expected an annotation that can be evaluated, got "
            f"{error}; define or import that name at module level, outside of TYPE_CHECKING"
        ) from error
    except _REFUSALS as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{_blamed(cls, pydantic)}: expected a type that JSON can carry, got one that is "
            f"refused: {reason}; {_USABLE}"
        ) from error
    for path, node in nodes:
        # What msgspec leaves to hooks: we have none.
        if isinstance(node, msgspec.inspect.CustomType):
            raise ConfigError(
                f"{cls.__qualname__}{path}: expected a type that JSON can carry, got "
                f"{type_name(node.cls)}; {_USABLE}"
            )


def reads_one_form(cls: type) -> bool:
    """Whether each value of a type has one form in JSON, so that another one is a wrong type.

    For msgspec it is so but for Decimals, which are read from text and numbers. Pydantic's models
    read many forms, depending on their settings.
    """
    return not is_pydantic(cls) and not any(
        isinstance(node, msgspec.inspect.DecimalType) for _, node in _schema_of(cls)
    )


_USABLE = (
    "use str, int, float, bool, None, bytes, dates and times, Decimal, UUID, an Enum, containers "
    "of these, or a class of such fields (a msgspec.Struct, a dataclass, ...)"
)


def _blamed(cls: type, pydantic: bool) -> str:
    # The library names only the type that it refuses, so each field is tried by itself.
    for name, hint in annotations_of(cls).items():
        try:
            wire(hint, pydantic=pydantic)
        except _REFUSALS:  # the caller reports the library's own error
            return f"{cls.__qualname__}.{name}"
    return cls.__qualname__


def _blamed_for_name(cls: type, error: NameError) -> str:
    for parent in cls.__mro__:
        for field, annotation in vars(parent).get("__annotations__", {}).items():
            if re.search(rf"\b{re.escape(str(error.name))}\b", str(annotation)):
                return f"{parent.__qualname__}.{field}"
    return cls.__qualname__


def _schema_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Gives each type within a type, as msgspec describes it, and the path to it."""
    # A type that holds itself, as a tree does, is one node that is met again.
    seen: set[int] = set()
    unseen: list[tuple[str, Any]] = [("", msgspec.inspect.type_info(cls))]
    while unseen:
        path, node = unseen.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        unseen += [(f"{path}.{field.name}", field.type) for field in getattr(node, "fields", ())]
        unseen += [(path, option) for option in getattr(node, "types", ())]
        items = [*getattr(node, "item_types", ())]
        items += [getattr(node, name, None) for name in ("item_type", "key_type", "value_type")]
        unseen += [(f"{path}[...]", item) for item in items if item is not None]
