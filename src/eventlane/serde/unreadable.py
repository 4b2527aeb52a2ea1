"""Why bytes are no event of a type: which field, what was expected, what came.

No message quotes the bytes. Messages end in logs, and payloads hold what must not be in logs; so
of the libraries' messages only the parts are kept that come from the type.
"""

import re
from typing import Any, Literal

import msgspec

from eventlane.serde.wire import names_in_schema

__all__ = ["HINTS", "explain_bytes", "placed"]

_MSGSPEC_PLACE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[\w.\[\]]*)`$")


HINTS = {
    "decode": "see who publishes to this topic, and in which format",
    "validate": "see who published it, and with which version of the type",
}
"""Where to look, by the stage in which bytes were refused."""


def explain_bytes(cls: type, error: Exception, stage: Literal["decode", "validate"]) -> str:
    """Says why reading bytes as a type failed with an error, without a word of the bytes."""
    if stage == "decode":
        return f"{cls.__qualname__}: expected JSON in UTF-8, got other bytes"
    return placed(cls.__qualname__, cls, error)


def placed(path: str, hint: Any, error: Exception) -> str:
    """Gives "path.field: expected ..., got ..." for what a library refused below a path."""
    if hasattr(error, "errors"):  # pydantic's, told without importing it
        return _placed_by_pydantic(path, hint, error)
    text = str(error)
    place = _MSGSPEC_PLACE.search(text)
    if place:
        path += place["path"] + (" (a key)" if place["key"] else "")
        text = text[: place.start()]
    if not isinstance(error, msgspec.ValidationError) or error.__cause__ is not None:
        # The type's own code raised it, and its words may quote values.
        name = type(error.__cause__ or error).__name__
        return f"{path}: expected a value that its type's own checks pass, got {name} from them"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        return f"{path}.{missing[1]}: expected a value, got none"
    return f"{path}: {_worded(text)}"


def _worded(text: str) -> str:
    plain = text.replace("`", "")
    if kinds := re.fullmatch(r"Expected (.+), got (\w+)", plain, re.DOTALL):
        return f"expected {kinds[1]}, got {kinds[2]}"
    if text.startswith("Expected "):
        return f"expected {plain.removeprefix('Expected ')}, got another"
    if text.startswith("Object contains unknown field"):
        return "expected only the fields of the type, got an unknown one"
    if text.startswith(("Invalid enum value", "Invalid value")):
        return "expected one of the declared values, got another"
    if text.startswith("Invalid "):
        return f"expected a valid {plain.removeprefix('Invalid ')}, got something else"
    return "expected a value that its type allows, got one that it refuses"


def _placed_by_pydantic(path: str, hint: Any, error: Any) -> str:
    first: Any = error.errors(include_url=False, include_context=False)[0]
    known = names_in_schema(hint)
    for step in first["loc"]:
        # The keys of dicts and unknown fields are payload: only the schema's names are shown.
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if step in known else "[...]"
    kind, text = str(first["type"]), str(first["msg"])
    if kind == "missing":
        return f"{path}: expected a value, got none"
    got = type(first["input"]).__name__
    if text.startswith("Input should be "):
        expected = text.removeprefix("Input should be ").partition(", ")[0]
        return f"{path}: expected {expected}, got {got}"
    return f"{path}: expected a value that passes {kind!r}, got {got}"
