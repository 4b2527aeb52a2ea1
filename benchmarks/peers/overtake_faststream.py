"""`eventlane prove overtake` with FastStream in the place of Eventlane: see README.md."""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

# Installed in the peers' own environment only.
import nats  # type: ignore[import-not-found]  # see above
from aiokafka import (  # type: ignore[import-not-found]  # see above
    AIOKafkaConsumer,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-not-found]  # see above
    AIOKafkaAdminClient,
    NewTopic,
)

from benchmarks.peers import servers
from benchmarks.peers.faststream_job import PARTITIONS, TOPIC
from eventlane.testing.checker import Kind
from eventlane.testing.history import Final, Log
from eventlane.testing.overtaking.job import made_app
from eventlane.testing.overtaking.ordeal import ChildEnded, Ordeal, Role
from eventlane.testing.overtaking.proof import Proof, final, proof_of

VARIANTS = (
    "eventlane",
    *("nats-nack", "nats-delay", "nats-one", "nats-keys"),
    *("kafka-default", "kafka-workers", "kafka-nack", "kafka-wait"),
)
Events = dict[int, list[tuple[int, bytes | None, UUID]]]


@contextlib.asynccontextmanager
async def server(variant: str, directory: Path, jars: Path) -> AsyncGenerator[str]:
    """What a variant runs on, with its topic."""
    if variant.startswith("nats"):
        async with servers.nats(directory) as url:
            client = await nats.connect(url)
            await client.jetstream().add_stream(name=TOPIC, subjects=[f"{TOPIC}.*"])
            await client.close()
            yield url
    elif variant.startswith("kafka"):
        async with servers.kafka(directory, jars) as url:
            admin = AIOKafkaAdminClient(bootstrap_servers=url)
            await admin.start()
            await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
            await admin.close()
            yield url
    else:
        yield ""


async def log_of(variant: str, url: str) -> Events:
    """The topic, read from its beginning to its end."""
    found: Events = defaultdict(list)

    def add(partition: int, offset: int, value: bytes) -> None:
        body: dict[str, Any] = json.loads(value)
        found[partition].append((offset, body["key"].encode(), UUID(body["id"])))

    if variant.startswith("nats"):
        client = await nats.connect(url)
        stream = client.jetstream()
        for offset in range(1, (await stream.stream_info(TOPIC)).state.last_seq + 1):
            message = await stream.get_msg(TOPIC, offset)
            add(0, offset, message.data or b"")
        await client.close()
        return found
    consumer = AIOKafkaConsumer(bootstrap_servers=url, auto_offset_reset="earliest")
    await consumer.start()
    places = [TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)]
    consumer.assign(places)
    ends = await consumer.end_offsets(places)
    while any([await consumer.position(place) < end for place, end in ends.items()]):
        for place, messages in (await consumer.getmany(timeout_ms=1000)).items():
            for message in messages:
                add(place.partition, message.offset, message.value)
    await consumer.stop()
    return found


async def overtake(
    variant: str, directory: Path, *, duration_s: float, seed: int, jars: Path
) -> Proof:
    """One variant's ordeal."""
    async with server(variant, directory, jars) as url:

        def command(role: Role, number: int) -> list[str]:
            if variant == "eventlane":
                job = ["eventlane.testing.overtaking.job", role]
            else:
                job = ["benchmarks.peers.faststream_job", role, variant, url]
            return [sys.executable, "-m", *job, str(directory), str(number)]

        ordeal = Ordeal(
            command=command, directory=directory, duration_s=duration_s, seed=seed, tell=print
        )
        await ordeal.run()
        if variant == "eventlane":
            async with made_app(directory) as app:
                ordeal.record(await final(app))
        else:
            events = await log_of(variant, url)
            logs = [
                Log(topic=TOPIC, partition=partition, events=tuple(each))
                for partition, each in sorted(events.items())
            ]
            ordeal.record(Final(idle=True, log=tuple(logs), letters=()))
    return proof_of(ordeal.history, kills=ordeal.kills)


def row(variant: str, proof: Proof) -> str:
    """A line of the table in README.md."""
    found, other = proof.anomalies, proof.meanwhile
    cells = (
        f"`{variant}`",
        f"{proof.acknowledged:,}",
        str(proof.lost),
        str(found[Kind.OVERTAKE]),
        str(found[Kind.TWO_AT_ONCE]),
        str(found[Kind.ATTEMPTS_DOWN]),
        str(found[Kind.EARLY_RETRY]),
        f"{proof.handled_again:,}",
        f"{other.handled:,} of {other.published:,} in {other.waited_s:.1f} s",
        f"{other.latest_s:.2f} s",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="overtake_faststream", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="VARIANT")
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic, for each")
    parser.add_argument("--seed", type=int, default=1, help="when to kill")
    parser.add_argument("--kafka", type=Path, default=Path("kafka"), help="where Kafka's jars are")
    options = parser.parse_args(arguments)
    jars = options.kafka.absolute()
    if any(each.startswith("kafka") for each in options.only) and not any(jars.glob("kafka_*.jar")):
        parser.error(f"--kafka {jars}: expected Kafka's jars there, found none; README.md says how")
    rows: list[str] = []
    for variant in options.only:
        print(f"\n{variant}")
        with tempfile.TemporaryDirectory(prefix="peers-") as name:
            try:
                proof = asyncio.run(
                    overtake(
                        variant,
                        Path(name),
                        duration_s=options.seconds,
                        seed=options.seed,
                        jars=jars,
                    )
                )
            except ChildEnded as error:
                raise SystemExit(f"{variant}: {error}") from None
        print(proof.verdict)
        rows.append(row(variant, proof))
    print(
        "\n| variant | acknowledged | lost | overtaken | two at once | attempts down | too early | "
        "done again | others in the waits | the latest of them |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
