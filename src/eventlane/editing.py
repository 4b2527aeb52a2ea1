"""A dead letter's event, changed or published again: validated, and with what it came from."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec

from eventlane.errors import EventRefused, TooLarge, Undecodable
from eventlane.event import EventType
from eventlane.failure import DeadLetter
from eventlane.message import (
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    EDITED_FROM,
    EVENT_TYPE,
    Record,
    decode_headers,
    encode_headers,
    event_id,
    headers_of,
)
from eventlane.serde import Codec
from eventlane.wording import key_in_words

__all__ = ["diff_of", "edited_record", "republished_record"]


def edited_record(
    letter: DeadLetter,
    value: object,
    kind: EventType[Any],
    codec: Codec,
    *,
    now_ms: int,
    bytes_max: int,
) -> Record:
    """The event that takes the place of a dead one.

    Args:
        letter: The dead one.
        value: An event of its type, or JSON: as bytes, as text, or as what it holds.
        kind: Its type.
        codec: Reads and writes that type.
        now_ms: For the new event's id.
        bytes_max: How large it may be.

    Raises:
        EventRefused: It is no such event, or has another key.
    """
    encoded = _encoded(value, kind, codec)
    if len(encoded) > bytes_max:
        raise TooLarge(
            f"{kind.name}: expected at most {bytes_max:,} bytes serialised, got {len(encoded):,}."
        )
    decode = codec.decoder(kind.cls)
    try:
        event = decode(encoded)
    except Undecodable as error:
        raise EventRefused(f"the edited {kind.name} cannot be read: {error.reason}.") from error
    key = kind.key(event)
    if key is not None and key not in (letter.key, _declared_key(letter, kind, decode)):
        raise EventRefused(
            f"the edited {kind.name}: expected the key {key_in_words(letter.key)}, by which it "
            f"keeps its place in its lane, got {key_in_words(key)}. Publish it as a new event, and "
            "archive this letter."
        )
    headers: dict[str, str | bytes] = {
        CONTENT_TYPE: codec.content_type,
        EVENT_TYPE: kind.name,
        CORRELATION_ID: letter.correlation_id or str(letter.event_id),
        **headers_of(letter.header_block),
        CAUSATION_ID: str(letter.event_id),
        EDITED_FROM: str(letter.id),
    }
    return Record(
        event_id(now_ms), letter.key, encoded, letter.produced_ms, encode_headers(headers)
    )


def _encoded(value: object, kind: EventType[Any], codec: Codec) -> bytes:
    if isinstance(value, kind.cls):
        return codec.encoder(kind.cls)(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, Mapping | list | tuple):
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError) as error:
            raise EventRefused(f"the edited {kind.name} is no JSON: {error}") from error
    raise EventRefused(
        f"the edited {kind.name}: expected one, or its JSON as bytes, text or a dict, got "
        f"{type(value).__name__}."
    )


def _declared_key(letter: DeadLetter, kind: EventType[Any], decode: Any) -> bytes | None:
    """The key that its type gave it, where it was published under another one."""
    try:
        return kind.key(decode(letter.value or b""))
    except (Undecodable, EventRefused):
        return letter.key


def republished_record(letter: DeadLetter, *, now_ms: int) -> Record:
    """The same event once more, as a new one."""
    try:
        headers = decode_headers(letter.header_block)
    except ValueError:
        # Kept byte for byte, as other programs wrote them.
        block = letter.header_block
    else:
        headers.setdefault(CORRELATION_ID, (letter.correlation_id or str(letter.event_id)).encode())
        block = encode_headers({**headers, CAUSATION_ID: str(letter.event_id)})
    return Record(event_id(now_ms), letter.key, letter.value, now_ms, block)


_GONE = "(none)"


def diff_of(before: bytes | None, after: bytes | None) -> str:
    """What an edit changed, as JSON: for each path its value before and after."""
    old, new = (dict(_leaves("", _plain(value))) for value in (before, after))
    changes = {
        path: (old.get(path, _GONE), new.get(path, _GONE))
        for path in {**old, **new}
        if repr(old.get(path, _GONE)) != repr(new.get(path, _GONE))
    }
    return msgspec.json.encode(changes).decode()


def _plain(value: bytes | None) -> Any:
    try:
        return msgspec.json.decode(value or b"null")
    except msgspec.DecodeError:
        return (value or b"").decode("utf-8", "replace")


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        parts = [(f"{path}.{name}" if path else name, part) for name, part in fields.items()]
    elif isinstance(value, list):
        items = cast("Iterable[Any]", value)
        parts = [(f"{path}[{at}]", part) for at, part in enumerate(items)]
    if not parts:
        yield path, value
    for inner, part in parts:
        yield from _leaves(inner, part)
