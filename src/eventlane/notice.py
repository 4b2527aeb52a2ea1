"""A dead letter as an event on the topic `<topic>.<group>.dlq`, so that code can react to it."""

from collections.abc import Mapping
from uuid import UUID

import msgspec

from eventlane.event import event
from eventlane.failure import DeadLetter
from eventlane.message import (
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    EVENT_TYPE,
    Record,
    derived_id,
    encode_headers,
)
from eventlane.topic import DLQ_SUFFIX

__all__ = ["DeadLettered", "dlq_topic", "notice_of", "with_letter_id"]


@event(topic="dead-letters", key="key", name="eventlane.DeadLettered")
class DeadLettered(msgspec.Struct, frozen=True, kw_only=True):
    """An event of another topic is dead in a group: subscribe with `topic="orders.inventory.dlq"`.

    It is published in the transaction of its dead letter, once for each time that it died, under
    the key of the event. It carries the event itself only with `App(dlq_payload=True)`.
    """

    id: str
    """The dead letter's, for `App.dead_letters(ids=…)`."""
    topic: str
    partition: int
    offset: int
    group: str
    handler: str
    key: str
    """The event's key as text; empty if it has none."""
    event_id: str
    event_type: str | None
    stage: str
    disposition: str
    error_class: str
    error_message: str
    cause_class: str | None
    fingerprint: str
    attempts: int
    crashes: int
    first_failed_ms: int
    last_failed_ms: int
    replay_count: int
    on_dead: str
    payload: bytes | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DeadLettered).decode


def dlq_topic(topic: str, group: str) -> str:
    """The topic of a group's dead letters."""
    return f"{topic}.{group}{DLQ_SUFFIX}"


def notice_of(letter: DeadLetter, *, with_payload: bool) -> tuple[str, Record]:
    """What is published when a letter is written: (topic, record)."""
    notice = DeadLettered(
        id=str(letter.id),
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        group=letter.group,
        handler=letter.handler,
        key="" if letter.key is None else letter.key.decode("utf-8", "replace"),
        event_id=str(letter.event_id),
        event_type=letter.event_type,
        stage=letter.stage,
        disposition=letter.disposition,
        error_class=letter.error_class,
        error_message=letter.error_message,
        cause_class=letter.cause_class,
        fingerprint=letter.fingerprint,
        attempts=letter.attempts,
        crashes=letter.crashes,
        first_failed_ms=letter.first_failed_ms,
        last_failed_ms=letter.last_failed_ms,
        replay_count=letter.replay_count,
        on_dead=letter.on_dead,
        payload=letter.value if with_payload else None,
    )
    headers = {
        EVENT_TYPE: "eventlane.DeadLettered",
        CONTENT_TYPE: "application/json",
        CORRELATION_ID: letter.correlation_id or str(letter.event_id),
        CAUSATION_ID: str(letter.event_id),
    }
    value = _encode(notice)
    new_id = derived_id(str(letter.id), letter.replay_count, letter.version, value)
    record = Record(new_id.bytes, letter.key, value, letter.last_failed_ms, encode_headers(headers))
    return dlq_topic(letter.topic, letter.group), record


def with_letter_id(record: Record, ids: Mapping[UUID, UUID]) -> Record:
    """The same notice of a letter that the store may know by another id."""
    notice = _decode(record.value or b"")
    kept = ids.get(UUID(notice.id))
    if kept is None:
        return record
    value = _encode(msgspec.structs.replace(notice, id=str(kept)))
    new_id = derived_id(str(kept), notice.replay_count, value)
    return msgspec.structs.replace(record, id=new_id.bytes, value=value)
