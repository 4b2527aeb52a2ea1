"""From an event to the record that a broker appends: the topic, the key, the bytes, the headers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from eventlane.clock import Clock
from eventlane.errors import EventRefused, TooLarge
from eventlane.event import EventType, Key, event_type, key_bytes
from eventlane.message import (
    CONTENT_TYPE,
    EVENT_SOURCE,
    EVENT_TYPE,
    Record,
    encode_headers,
    event_ids,
)
from eventlane.serde import Codecs
from eventlane.topic import Topic

__all__ = ["Outgoing", "Serialiser"]


class Outgoing(NamedTuple):
    """What all events of one type have in common on their way out; built once."""

    declared: EventType[Any]
    topic: str
    encode: Any
    key: Any
    headers: dict[str, str | bytes]
    header_block: bytes


class Serialiser:
    """Makes records of events. One per app."""

    def __init__(
        self,
        *,
        codecs: Codecs,
        source: str,
        clock: Clock,
        bytes_max: int,
        declare: Callable[[Topic, str], None],
    ) -> None:
        """`declare` is told of the topic of each type that is published."""
        self._declare = declare
        self._codecs = codecs
        self._source = source
        self._clock = clock
        self._bytes_max = bytes_max
        self._outgoing: dict[type, Outgoing] = {}

    def outgoing(self, cls: type) -> Outgoing:
        """What is built once for an event type.

        Raises:
            ConfigError: The class is not declared with `@event`, or cannot be serialised.
        """
        known = self._outgoing.get(cls)
        if known is not None:
            return known
        if type in cls.__mro__:
            raise EventRefused("expected an event, got a class. Publish an instance of it.")
        declared: EventType[Any] = event_type(cls)
        codec = self._codecs.of(declared)
        self._declare(declared.topic, declared.declared_at)
        headers: dict[str, str | bytes] = {
            EVENT_TYPE: declared.name,
            EVENT_SOURCE: self._source,
            CONTENT_TYPE: codec.content_type,
        }
        built = self._outgoing[cls] = Outgoing(
            declared,
            declared.topic.name,
            codec.encoder(cls),
            declared.key,
            headers,
            encode_headers(headers),
        )
        return built

    def __call__(
        self,
        event: object,
        key: Key | None = None,
        topic: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        event_id: UUID | None = None,
    ) -> tuple[str, Record]:
        """The topic and the record for one event.

        Raises:
            EventRefused: It cannot be published: a field, the key or a header is wrong.
            ConfigError: Its type is not declared with `@event`.
        """
        out = self.outgoing(type(event))
        value = out.encode(event)
        if len(value) > self._bytes_max:
            raise self._too_large(out, value)
        now_ms = self._clock.now_ms()
        block = out.header_block
        if headers:
            block = encode_headers({**_checked(headers), **out.headers})
        target = out.topic
        if topic is not None:
            target = Topic(topic).name
        return target, Record(
            event_ids(now_ms, 1)[0] if event_id is None else event_id.bytes,
            out.key(event) if key is None else key_bytes(key),
            value,
            now_ms,
            block,
        )

    def many(self, events: Sequence[object]) -> dict[str, list[Record]]:
        """The records of many events, by topic, in order.

        Raises:
            EventRefused: The first event that cannot be published.
            ConfigError: The first event whose type is not declared.
        """
        known, bytes_max = self._outgoing, self._bytes_max
        now_ms = self._clock.now_ms()
        records: dict[str, list[Record]] = {}
        for event, event_id in zip(events, event_ids(now_ms, len(events)), strict=True):
            out = known.get(type(event)) or self.outgoing(type(event))
            _, topic, encode, key, _, block = out
            value = encode(event)
            if len(value) > bytes_max:
                raise self._too_large(out, value)
            record = Record(event_id, key(event), value, now_ms, block)
            try:
                records[topic].append(record)
            except KeyError:
                records[topic] = [record]
        return records

    def _too_large(self, out: Outgoing, value: bytes) -> TooLarge:
        return TooLarge(
            f"{out.declared.name}: expected at most {self._bytes_max:,} bytes serialised, got "
            f"{len(value):,}. Publish a reference to the large part, or raise "
            "Limits(event_bytes_max=…)."
        )


def _checked(headers: Mapping[str, str | bytes]) -> Mapping[str, str | bytes]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            raise EventRefused(
                f"header {name!r}={value!r}: expected text for the name and text or bytes for the "
                "value. Serialise other values yourself."
            )
        if name.startswith("ce_") or name == CONTENT_TYPE:
            raise EventRefused(
                f"header {name!r}: expected a name that does not begin with 'ce_' and is not "
                f"{CONTENT_TYPE!r}: these belong to CloudEvents and are set for you."
            )
    return headers
