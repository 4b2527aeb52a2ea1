"""From an event to the record that a broker appends: the topic, the key, the bytes, the headers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, repeat
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
from eventlane.message import event_id as new_id
from eventlane.serde import Codecs
from eventlane.topic import DLQ_SUFFIX, Topic

__all__ = ["Outgoing", "Serialiser", "refuse_dlq"]


class Outgoing(NamedTuple):
    """What all events of one type have in common on their way out; built once."""

    declared: EventType[Any]
    topic: str
    encode: Any
    encode_many: Any
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
            codec.encoder_of_many(cls),
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
        out = self._outgoing.get(type(event)) or self.outgoing(type(event))
        value = out.encode(event)
        if len(value) > self._bytes_max:
            raise self._too_large(out, value)
        now_ms = self._clock.now_ms()
        block = out.header_block
        if headers:
            block = encode_headers({**_checked(headers), **out.headers})
        target = out.topic
        if topic is not None:
            refuse_dlq(topic)
            target = Topic(topic).name
        return target, Record(
            new_id(now_ms) if event_id is None else event_id.bytes,
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
        now_ms = self._clock.now_ms()
        records: dict[str, list[Record]] = {}
        # Stretches of one type, since what is done for all at once costs less for each. No sorting
        # by type: the order within a topic is the order of the events.
        one_type = len(set(map(type, events))) == 1
        stretches = [(type(events[0]), events)] if one_type else groupby(events, type)
        for cls, stretch in stretches:
            out = self._outgoing.get(cls) or self.outgoing(cls)
            records.setdefault(out.topic, []).extend(self._of_one_type(out, list(stretch), now_ms))
        return records

    def _of_one_type(self, out: Outgoing, events: list[object], now_ms: int) -> Iterable[Record]:
        values = out.encode_many(events)
        if max(map(len, values)) > self._bytes_max:
            raise self._too_large(out, next(each for each in values if len(each) > self._bytes_max))
        ids = event_ids(now_ms, len(events))
        keys = out.declared.keys(events)
        return map(Record, ids, keys, values, repeat(now_ms), repeat(out.header_block))

    def _too_large(self, out: Outgoing, value: bytes) -> TooLarge:
        return TooLarge(
            f"{out.declared.name}: expected at most {self._bytes_max:,} bytes serialised, got "
            f"{len(value):,}. Publish a reference to the large part, or raise "
            "Limits(event_bytes_max=…)."
        )


def refuse_dlq(topic: str) -> None:
    """Refuse to publish where only dead letters are published, and by nobody but Eventlane.

    Raises:
        EventRefused: The topic is one of these.
    """
    if topic.endswith(DLQ_SUFFIX):
        raise EventRefused(
            f"topic {topic!r}: expected a name that does not end in {DLQ_SUFFIX!r}; what Eventlane "
            "itself publishes of dead letters goes there. Publish to another topic."
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
