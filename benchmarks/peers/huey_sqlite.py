"""huey on SQLite: a task queue, so a publisher enqueues a task for one consumer.

Durability: `fsync=True` is SQLite's `synchronous=FULL`, so an enqueued task survives the end of the
machine; `fsync=False` is OFF. A task leaves the file when a worker takes it: one that was running
in a killed worker is gone. Results are not stored, which its pages recommend where nobody asks for
them. One worker: SQLite has one writer, and more wait for its lock.
"""

import sys
from pathlib import Path

from huey import SqliteHuey  # type: ignore[import-not-found]  # in the peers' own environment only

from benchmarks.orders import Order
from benchmarks.peers.job import Seen, Watch, main

POLL_S = 0.001
"""How long a worker sleeps that found nothing; the default of 0.1 s costs a part of the figure."""


def huey_at(place: str) -> SqliteHuey:
    """`DIRECTORY` or `DIRECTORY,nosync`."""
    directory, _, setting = place.partition(",")
    return SqliteHuey(
        filename=Path(directory) / "huey.db", fsync=setting != "nosync", results=False
    )


def publish(place: str, orders: list[Order], watch: Watch) -> None:
    huey = huey_at(place)

    def handle(order: Order) -> None:
        raise AssertionError(f"expected the worker to handle {order}")

    enqueue = huey.task(name="handle")(handle)
    with watch:
        for order in orders:
            enqueue(order)


def handle(place: str, seen: Seen) -> None:
    huey = huey_at(place)

    def handle(order: Order) -> None:
        seen(order)

    huey.task(name="handle")(handle)
    consumer = huey.create_consumer(
        workers=1, initial_delay=POLL_S, max_delay=POLL_S, periodic=False
    )
    consumer.start()
    seen.ready()
    sys.stdin.readline()  # until it is killed


if __name__ == "__main__":
    main(publish, handle, lambda _: None)
