"""A message: an event's bytes and what travels with them.

A `Record` is a message as a log keeps it, without its place; a `Message` is what a reader gets.
Headers stay encoded in a record: all events of one type share the same block of bytes, so that a
reader resolves it once and not once per event.
"""

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

__all__ = [
    "CAUSATION_ID",
    "CONTENT_TYPE",
    "CORRELATION_ID",
    "EVENT_SOURCE",
    "EVENT_TYPE",
    "Message",
    "Position",
    "Record",
    "decode_headers",
    "derived_id",
    "encode_headers",
    "event_ids",
    "headers_of",
]

# CloudEvents 1.0, Kafka protocol binding in binary mode; ours have the prefix `el-`.
EVENT_TYPE = "ce_type"
EVENT_SOURCE = "ce_source"
CONTENT_TYPE = "content-type"
CORRELATION_ID = "el-correlation-id"
CAUSATION_ID = "el-causation-id"


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
_decode = msgspec.msgpack.Decoder(dict[str, bytes]).decode


def encode_headers(headers: Mapping[str, str | bytes]) -> bytes:
    """Pack headers to the block that a `Record` carries; text as UTF-8."""
    return _encode({name: v if isinstance(v, bytes) else v.encode() for name, v in headers.items()})


def decode_headers(block: bytes) -> dict[str, bytes]:
    """Unpack what `encode_headers` packed."""
    return _decode(block)


def headers_of(block: bytes) -> dict[str, bytes]:
    """What a block of headers holds; nothing where it is none, as other programs may write."""
    try:
        return _decode(block)
    except msgspec.DecodeError:
        return {}


_IDS_MASK = (1 << 62) - 1
_next_id = int.from_bytes(os.urandom(8), "big") & _IDS_MASK


def _reseed() -> None:
    global _next_id  # noqa: PLW0603  # a forked child would otherwise make its parent's ids again
    _next_id = int.from_bytes(os.urandom(8), "big") & _IDS_MASK


os.register_at_fork(after_in_child=_reseed)


def event_ids(now_ms: int, count: int) -> list[bytes]:
    """New event ids, each 16 bytes: UUIDs of version 7 (RFC 9562, 5.7).

    All carry the same time; the rest counts up from a random start, so that ids made in one
    process sort in the order in which they were made.
    """
    global _next_id  # noqa: PLW0603  # a counter of the process
    first = _next_id
    _next_id = (first + count) & _IDS_MASK
    head = ((now_ms << 16) | 0x7000 | (os.getpid() & 0xFFF)).to_bytes(8, "big")
    if _next_id < first:  # the counter went round, once in 2^62 ids
        first = 0
    variant = 1 << 63
    return [
        head + number.to_bytes(8, "big")
        for number in range(variant | first, (variant | first) + count)
    ]


def derived_id(*parts: object) -> UUID:
    """An id that is the same whenever its parts are: a UUID of version 8 (RFC 9562, 5.8)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    number = int.from_bytes(digest.digest(), "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    return UUID(int=number & ~(0x3 << 62) | 0x2 << 62)
