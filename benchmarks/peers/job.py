"""What the peers' jobs have in common: one process publishes orders, another one handles them.

    python -m benchmarks.peers.NAME publish|handle PLACE COUNT

A publisher says that it is ready, waits for a line, publishes, and says when it began and ended. A
worker says that it is ready, and when it handled the last order; it is killed then. All processes
of a machine share the clock.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from benchmarks.orders import Order, orders

__all__ = ["Seen", "Watch", "decode", "encode", "main"]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Order).decode


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Watch:
    """Around what is measured of a publisher: from being told to begin until all is accepted."""

    def __enter__(self) -> None:
        say("ready")
        sys.stdin.readline()
        self._start_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            say(json.dumps({"start_ns": self._start_ns, "end_ns": time.monotonic_ns()}))


class Seen:
    """What a handler does with an order: count it, and say when the last one came."""

    def __init__(self, count: int) -> None:
        self._left = count

    def ready(self) -> None:
        say("ready")

    def __call__(self, order: Order) -> None:
        self._left -= 1
        if not self._left:
            end_ns = time.monotonic_ns()
            assert type(order) is Order, order
            say(json.dumps({"end_ns": end_ns}))


def main(
    publish: Callable[[str, list[Order], Watch], Any],
    handle: Callable[[str, Seen], Any],
    run: Callable[[Any], object],
) -> None:
    """Run one of the two; `run` runs what the function returned, in an event loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("publish", "handle"))
    parser.add_argument("place")
    parser.add_argument("count", type=int)
    chosen = parser.parse_args()
    if chosen.role == "publish":
        run(publish(chosen.place, orders(chosen.count), Watch()))
    else:
        run(handle(chosen.place, Seen(chosen.count)))
