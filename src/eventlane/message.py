"""A message: an event's bytes and what travels with them.

A `Record` is a message as a log keeps it, without its place; a `Message` is what a reader gets.
Headers stay encoded in a record: all events of one type share the same block of bytes, so that a
reader resolves it once and not once per event.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import repeat
from typing import NamedTuple
from uuid import UUID

import msgspec

__all__ = [
    "CAUSATION_ID",
    "CONTENT_TYPE",
    "CORRELATION_ID",
    "EDITED_FROM",
    "EVENT_SOURCE",
    "EVENT_TYPE",
    "Message",
    "Position",
    "Record",
    "decode_headers",
    "derived_id",
    "encode_headers",
    "event_id",
    "event_ids",
    "headers_of",
]

# CloudEvents 1.0, Kafka protocol binding in binary mode; ours have the prefix `el-`.
EVENT_TYPE = "ce_type"
EVENT_SOURCE = "ce_source"
CONTENT_TYPE = "content-type"
CORRELATION_ID = "el-correlation-id"
CAUSATION_ID = "el-causation-id"
EDITED_FROM = "el-edited-from"
"""The dead letter of which this event is an edited child."""


class Position(NamedTuple):
    """Where a message lies: offsets count from 0 within a partition."""

    topic: str
    partition: int
    offset: int


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message as the log keeps it."""

    id: bytes
    """The event id: the 16 bytes of a UUID."""
    key: bytes | None
    value: bytes | None
    """None is a tombstone: the key's state is gone."""
    time_ms: int
    headers: bytes
    """What `encode_headers` made."""


class Message(msgspec.Struct, frozen=True):
    """A message on a topic."""

    topic: str
    partition: int
    offset: int
    record: Record

    @property
    def key(self) -> bytes | None:
        """The key, as bytes; None for a keyless message."""
        return self.record.key

    @property
    def value(self) -> bytes | None:
        """The serialised event, byte for byte; None for a tombstone."""
        return self.record.value

    @property
    def event_id(self) -> UUID:
        """The event's id, the same in every group, attempt and replay."""
        return UUID(bytes=self.record.id)

    @property
    def time(self) -> datetime:
        """When it was published, in UTC, to the millisecond."""
        return datetime.fromtimestamp(self.record.time_ms / 1000, UTC)

    @property
    def headers(self) -> Mapping[str, bytes]:
        """The headers, CloudEvents' `ce_id`, `ce_time` and `ce_specversion` included."""
        return {
            **headers_of(self.record.headers),
            "ce_id": str(self.event_id).encode(),
            "ce_time": self.time.isoformat().encode(),
            "ce_specversion": b"1.0",
        }

    @property
    def event_type(self) -> str | None:
        """The name of the event's type (`ce_type`); None where the sender gave none."""
        name = headers_of(self.record.headers).get(EVENT_TYPE)
        return None if name is None else name.decode("utf-8", "replace")

    @property
    def position(self) -> Position:
        """Where it lies."""
        return Position(self.topic, self.partition, self.offset)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[int | str, int | bytes]).decode
# Every record carries its block. A name or value that nearly all have is one byte there, which
# takes a fifth off the log and 0.2 us off an event that is published (benchmarks, publish_many).
# Part of the file format: add at the end, change nothing.
_NAMES = (EVENT_TYPE, EVENT_SOURCE, CONTENT_TYPE, CORRELATION_ID, CAUSATION_ID)
_VALUES = (b"application/json",)
_NAME_CODES: dict[str, int] = {name: code for code, name in enumerate(_NAMES)}
_VALUE_CODES: dict[bytes, int] = {value: code for code, value in enumerate(_VALUES)}


def encode_headers(headers: Mapping[str, str | bytes]) -> bytes:
    """Pack headers to the block that a `Record` carries; text as UTF-8."""
    packed: dict[int | str, int | bytes] = {}
    for name, value in headers.items():
        as_bytes = value if isinstance(value, bytes) else value.encode()
        packed[_NAME_CODES.get(name, name)] = _VALUE_CODES.get(as_bytes, as_bytes)
    return _encode(packed)


def decode_headers(block: bytes) -> dict[str, bytes]:
    """Unpack what `encode_headers` packed.

    Raises:
        ValueError: It is no such block.
    """
    try:
        return {
            _NAMES[name] if isinstance(name, int) else name: (
                _VALUES[value] if isinstance(value, int) else value
            )
            for name, value in _decode(block).items()
        }
    except (msgspec.DecodeError, IndexError) as error:
        raise ValueError(f"expected a block of headers, got other bytes: {error}") from error


def headers_of(block: bytes) -> dict[str, bytes]:
    """What a block of headers holds; nothing where it is none, as other programs may write."""
    try:
        return decode_headers(block)
    except ValueError:
        return {}


_COUNTER_MASK = (1 << 62) - 1
_VARIANT = 1 << 63
_of_halves = struct.Struct(">QQ").pack
_of_head_and_last = struct.Struct(">12sI").pack


class _Counter:
    """What makes ids differ: counts up from a random start, and knows the process."""

    def __init__(self) -> None:
        self.next = int.from_bytes(os.urandom(8), "big") & _COUNTER_MASK
        self.pid_bits = os.getpid() & 0xFFF


_counter = _Counter()
# A forked child would otherwise make its parent's ids again.
if hasattr(os, "register_at_fork"):  # elsewhere no process is forked
    os.register_at_fork(after_in_child=lambda: _Counter.__init__(_counter))


def event_id(now_ms: int) -> bytes:
    """A new event id: see `event_ids`."""
    number = _counter.next
    _counter.next = (number + 1) & _COUNTER_MASK
    return _of_halves(now_ms << 16 | 0x7000 | _counter.pid_bits, _VARIANT | number)


def event_ids(now_ms: int, count: int) -> list[bytes]:
    """New event ids, each 16 bytes: UUIDs of version 7 (RFC 9562, 5.7).

    All carry the same time; the rest counts up from a random start, so that ids made in one
    process sort in the order in which they were made.
    """
    first = _counter.next
    if (first ^ (first + count)) >> 32:  # within one call only the last 32 bits differ
        first = ((first >> 32) + 1 << 32) & _COUNTER_MASK
    _counter.next = first + count
    high, low = divmod(_VARIANT | first, 1 << 32)
    head = (now_ms << 16 | 0x7000 | _counter.pid_bits).to_bytes(8, "big") + high.to_bytes(4, "big")
    return list(map(_of_head_and_last, repeat(head), range(low, low + count)))


def derived_id(*parts: object) -> UUID:
    """An id that is the same whenever its parts are: a UUID of version 8 (RFC 9562, 5.8)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    number = int.from_bytes(digest.digest(), "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    return UUID(int=number & ~(0x3 << 62) | 0x2 << 62)
