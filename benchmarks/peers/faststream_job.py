"""The publisher and the worker of the ordeal, on FastStream.

    faststream_job.py ROLE VARIANT URL DIRECTORY NUMBER

A variant is one way to have an event that failed handled again after 0.5 s. FastStream has for it
its `AckPolicy`, and `nack` of a message; README.md says which page says what.
"""

import asyncio
import logging
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

# Installed in the peers' own environment only.
from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]  # see above
from faststream.kafka import (  # type: ignore[import-not-found]  # see above
    KafkaBroker,
    KafkaMessage,
)
from faststream.nats import (  # type: ignore[import-not-found]  # see above
    JStream,
    NatsBroker,
    NatsMessage,
    PullSub,
)
from nats.js.api import ConsumerConfig  # type: ignore[import-not-found]  # see above

from eventlane.testing.history import Published, Started
from eventlane.testing.overtaking.job import (
    DELAY_S,
    GROUP,
    KEYS,
    ServiceDown,
    Step,
    end_with_parent,
    handle,
    new_event_id,
    now_ms,
    publish_steadily,
)

PARTITIONS = 8
TOPIC = "steps"
ACK_WAIT_S = 2.0
"""NATS gives a killed worker's messages out again after so long; its default is 30 s."""
SESSION_TIMEOUT_MS = 6000
"""Kafka gives a killed worker's partitions away after so long: the least that it allows."""

Handler = Callable[..., Awaitable[None]]


class Service:
    """What every handler does here: note the run, and call the service."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory = directory
        self._process = process
        self._due_ms: dict[tuple[int, int], int] = {}

    async def __call__(
        self, body: dict[str, Any], partition: int, offset: int, attempt: int
    ) -> None:
        step = Step(body["key"], body["number"])
        run = Started(
            process=self._process,
            group=GROUP,
            topic=TOPIC,
            partition=partition,
            offset=offset,
            key=step.key.encode(),
            event_id=UUID(body["id"]),
            attempt=attempt,
            at_ms=now_ms(),
            due_ms=self._due_ms.get((partition, offset)),
        )
        try:
            await handle(self._directory, step, run)
        except ServiceDown:
            self._due_ms[partition, offset] = now_ms() + round(DELAY_S * 1000)
            raise


# --- NATS JetStream ----------------------------------------------------------------------------


def nats_subscribe(broker: NatsBroker, variant: str, service: Service) -> None:
    async def call(body: dict[str, Any], message: NatsMessage) -> None:
        told = message.raw_message.metadata
        await service(body, 0, told.sequence.stream, told.num_delivered)

    async def call_again_later(body: dict[str, Any], message: NatsMessage) -> None:
        try:
            await call(body, message)
        except ServiceDown:
            await message.nack(delay=DELAY_S)
        else:
            await message.ack()

    stream = JStream(TOPIC, subjects=[f"{TOPIC}.*"])
    nacks = variant == "nats-nack"

    def subscribe(subject: str, durable: str, *, unacknowledged_max: int) -> None:
        broker.subscriber(
            subject,
            stream=stream,
            durable=durable,
            pull_sub=PullSub(batch_size=min(100, unacknowledged_max), timeout=0.2),
            config=ConsumerConfig(ack_wait=ACK_WAIT_S, max_ack_pending=unacknowledged_max),
            ack_policy=AckPolicy.NACK_ON_ERROR if nacks else AckPolicy.MANUAL,
        )(call if nacks else call_again_later)

    if variant == "nats-keys":
        for key in KEYS:
            subscribe(f"{TOPIC}.{key}", f"{GROUP}-{key}", unacknowledged_max=1)
    else:
        subscribe(f"{TOPIC}.*", GROUP, unacknowledged_max=1 if variant == "nats-one" else 1000)


# --- Kafka -------------------------------------------------------------------------------------


def kafka_subscribe(broker: KafkaBroker, variant: str, service: Service) -> None:
    runs: Counter[tuple[int, int]] = Counter()  # in memory: Kafka does not count deliveries

    async def call(body: dict[str, Any], message: KafkaMessage) -> None:
        place = message.raw_message.partition, message.raw_message.offset
        runs[place] += 1
        await service(body, *place, runs[place])

    async def call_again_later(body: dict[str, Any], message: KafkaMessage) -> None:
        try:
            await call(body, message)
        except ServiceDown:
            await asyncio.sleep(DELAY_S)
            await message.nack()
        else:
            await message.ack()

    variants: dict[str, tuple[Handler, AckPolicy, int]] = {
        "kafka-default": (call, AckPolicy.ACK_FIRST, 1),
        "kafka-workers": (call, AckPolicy.ACK_FIRST, len(KEYS)),
        "kafka-nack": (call, AckPolicy.NACK_ON_ERROR, PARTITIONS),
        "kafka-wait": (call_again_later, AckPolicy.MANUAL, PARTITIONS),
    }
    handler, policy, workers_max = variants[variant]
    broker.subscriber(
        TOPIC,
        group_id=GROUP,
        auto_offset_reset="earliest",
        session_timeout_ms=SESSION_TIMEOUT_MS,
        ack_policy=policy,
        max_workers=workers_max,
    )(handler)


# --- the two roles -----------------------------------------------------------------------------


async def publisher(broker: Any, number: int) -> None:
    async def publish(step: Step) -> Published:
        event_id = new_event_id()
        body = {"id": str(event_id), "key": step.key, "number": step.number}
        if isinstance(broker, NatsBroker):
            acknowledged = await broker.publish(body, f"{TOPIC}.{step.key}", stream=TOPIC)
            partition, offset = 0, acknowledged.seq
        else:
            acknowledged = await broker.publish(body, TOPIC, key=step.key.encode())
            partition, offset = acknowledged.partition, acknowledged.offset
        return Published(
            topic=TOPIC,
            partition=partition,
            offset=offset,
            key=step.key.encode(),
            event_id=event_id,
            process=f"publisher-{number}",
        )

    async with broker:
        await publish_steadily(publish, number)


async def worker(broker: Any) -> None:
    app = FastStream(broker)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.exit)
    await app.run()


def main(role: str, variant: str, url: str, directory: str, number: str) -> None:
    end_with_parent()
    logger = logging.getLogger("peer")  # FastStream's own writes to the standard output
    logger.addHandler(logging.StreamHandler(sys.stderr))
    of_nats = variant.startswith("nats")
    broker = (NatsBroker if of_nats else KafkaBroker)(url, logger=logger)
    if role == "publisher":
        asyncio.run(publisher(broker, int(number)))
        return
    subscribe = nats_subscribe if of_nats else kafka_subscribe
    subscribe(broker, variant, Service(Path(directory), f"worker-{number}"))
    asyncio.run(worker(broker))


if __name__ == "__main__":
    main(*sys.argv[1:])
