"""litequeue on SQLite: a queue, and the loop around it is one's own.

Durability: it comes with `synchronous=NORMAL`, so what was put survives the end of the process and
not that of the machine; with `,full` each put is synced. There is no call for many at once. What a
killed worker had popped stays locked until somebody looks for it.
"""

import sqlite3
import time
from itertools import count
from pathlib import Path

from litequeue import LiteQueue  # type: ignore[import-not-found]  # in the peers' environment only

from benchmarks.orders import Order
from benchmarks.peers.job import Seen, Watch, decode, encode, main

POLL_S = 0.001
PRUNED = 500
"""`pop` looks past all that is done, so it is taken out this often."""


def queue_at(place: str) -> LiteQueue:
    """`DIRECTORY` or `DIRECTORY,full`."""
    directory, _, setting = place.partition(",")
    connection = sqlite3.connect(Path(directory) / "queue.db", timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    queue = LiteQueue(connection)
    if setting == "full":
        connection.execute("PRAGMA synchronous = FULL")
    return queue


def publish(place: str, orders: list[Order], watch: Watch) -> None:
    queue = queue_at(place)
    with watch:
        for order in orders:
            queue.put(encode(order).decode())


def handle(place: str, seen: Seen) -> None:
    queue = queue_at(place)
    seen.ready()
    for number in count(1):
        if number % PRUNED == 0:
            queue.prune()
        message = queue.pop()
        if message is None:
            time.sleep(POLL_S)
            continue
        seen(decode(message.data))
        queue.done(message.message_id)


if __name__ == "__main__":
    main(publish, handle, lambda _: None)
