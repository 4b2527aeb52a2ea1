"""The world of one history: its time, its processes, and what is told of it.

A **node** is a place that runs one process at a time and starts it again. A **process** has an
event loop, which may be stopped for a while (the process is frozen, or a handler blocks it) or for
ever: then nothing that waits in it goes on, and no `finally` of it has any effect.
"""

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

from eventlane.clock import Timer
from eventlane.testing.history import Died, Operation
from eventlane.testing.simulation.loop import Loop, Schedule
from eventlane.testing.simulation.storage import SimulatedFile, Store

__all__ = ["Clock", "Disk", "Main", "Node", "Process", "Story", "World"]

_START_MS = 1_700_000_000_000


class Clock:
    """Wall time, which may jump, and monotonic time: see `eventlane.clock.Clock`."""

    def __init__(self, schedule: Schedule) -> None:
        self.shift_ms = 0
        self.latest_ms = _START_MS
        """The latest wall time that there was. What was due by then is not early after a jump."""
        self._schedule = schedule

    def now_ms(self) -> int:
        """See `eventlane.clock.Clock`."""
        now_ms = _START_MS + int(self._schedule.now_s * 1000 + 1e-6) + self.shift_ms
        self.latest_ms = max(self.latest_ms, now_ms)
        return now_ms

    def after_ms(self, delay_s: float) -> int:
        """See `eventlane.clock.Clock`."""
        return self.now_ms() + math.ceil(delay_s * 1000) + 1 if delay_s else self.now_ms()

    def monotonic_s(self) -> float:
        """See `eventlane.clock.Clock`."""
        return self._schedule.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `eventlane.clock.Clock`."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


class Disk:
    """How the disk does."""

    def __init__(self) -> None:
        self.slowness = 1.0
        self.failure_ratio = 0.0
        """How many transactions fail, of those that would write."""


class Process:
    """One start of a node: an event loop, the file it has open, its members."""

    def __init__(self, world: "World", node: "Node") -> None:
        node.starts += 1
        self.node = node
        self.world = world
        self.name = f"{node.name}.{node.starts}"
        self.is_alive = True
        self.is_frozen = False
        self.frozen_s = 0.0
        self.dead_from_s: float | None = None
        """From then on the others know that it is dead."""
        self.dies_after_commit = False
        self.freezes_at_write_s = 0.0
        """For how long it is frozen just before it writes next; 0: it is not."""
        self.asked_to_stop = False
        self.stop = asyncio.Event()
        self.files: list[SimulatedFile] = []
        self.loop = Loop(
            world.schedule,
            tick_s=world.tick_s,
            run_thread=lambda run: self.in_thread(world.delay_s(), run),
            went_wrong=self._went_wrong,
        )
        self._put_off: list[Callable[[], None]] = []
        self.main: asyncio.Task[None] = self.loop.create_task(node.main(self), name=self.name)
        self.main.add_done_callback(lambda _: world.schedule.call_later(0.0, self._main_ended))

    def in_thread(self, delay_s: float, run: Callable[[], None]) -> None:
        """Run something as a thread of the process would, a while later."""

        def later() -> None:
            if not self.is_alive:
                return
            if self.is_frozen:
                self._put_off.append(later)
            else:
                run()

        self.world.schedule.call_later(delay_s, later)

    def freeze(self, duration_s: float) -> None:
        """Nothing of it moves for a while, as after SIGSTOP."""
        self.is_frozen = self.loop.is_stopped = True
        self.frozen_s = self.world.schedule.now_s
        self.world.schedule.call_later(duration_s, self.thaw)

    def stall(self, duration_s: float) -> None:
        """A handler blocks its event loop for a while; its threads go on."""
        self.loop.is_stopped = True
        self.world.schedule.call_later(duration_s, self.thaw)

    def thaw(self) -> None:
        """It goes on."""
        if not self.is_alive:
            return
        self.is_frozen = self.loop.is_stopped = False
        put_off, self._put_off = self._put_off, []
        for later in put_off:
            later()

    def kill(self, *, known_after_s: float = 0.0) -> None:
        """It dies where it stands: what it waits for never comes."""
        if self.is_alive:
            self.world.note(f"{self.name} dies")
            self.world.record(Died(process=self.name))
            self._end(known_after_s=known_after_s, clean=False)

    def vanish(self) -> None:
        """It is gone, and so is what it has left."""
        self.is_alive = False
        self.loop.die()
        for file in self.files:
            file.let_go()
        # Later, since this may be called by what is to be taken apart.
        self.world.unburied.append(self)
        self.world.schedule.call_later(0.0, self.bury)

    def bury(self) -> None:
        """Take apart what a process has left that is gone. Once, however often this is called."""
        if self not in self.world.unburied:
            return
        self.world.unburied.remove(self)
        # It may draw numbers on its way.
        state = random.getstate()
        self.loop.bury()
        random.setstate(state)

    def ask_to_stop(self) -> None:
        """It is to end in an orderly way."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            self.world.note(f"{self.name} is asked to stop")
            self.loop.call_soon_threadsafe(self.stop.set)

    def _main_ended(self) -> None:
        if not self.is_alive:
            return
        error = None if self.main.cancelled() else self.main.exception()
        if error is None:
            self.world.note(f"{self.name} ended")
            self._end(known_after_s=0.0, clean=True)
            return
        self.world.note(f"{self.name} failed: {type(error).__name__}: {error}")
        for each in _leaves(error):
            if not isinstance(each, self.world.expected):
                self.world.went_wrong(f"{self.name} ended", each)
        self.kill()

    def _end(self, *, known_after_s: float, clean: bool) -> None:
        self.dead_from_s = self.world.schedule.now_s + known_after_s
        self.vanish()
        self.node.has_ended(clean=clean)

    def _went_wrong(self, message: str, error: BaseException | None) -> None:
        self.world.went_wrong(f"{self.name}: {message}", error)


Main = Callable[[Process], Coroutine[Any, Any, None]]


class Node:
    """A place in the deployment that runs one process at a time, and starts it again."""

    def __init__(self, world: "World", name: str, main: Main) -> None:
        self.world = world
        self.name = name
        self.main = main
        self.starts = 0
        self.process: Process | None = None
        self.is_wanted = True
        self.is_over = False
        """What it runs has done all that it was for."""

    def start(self) -> None:
        """Start a process, unless one runs."""
        if self.process is None and self.is_wanted:
            self.process = Process(self.world, self)
            self.world.note(f"{self.process.name} starts")

    def has_ended(self, *, clean: bool) -> None:
        """Its process is gone: start the next one after a while."""
        self.process = None
        if not (clean and self.is_over):
            self.world.schedule.call_later(self.world.restart_s(), self.start)


class World:
    """All of it. A seed makes one.

    Args:
        seed: what all chance comes from.
        store: where the file is.
        expected: with what a process may end.
    """

    def __init__(
        self, seed: int, store: Store, *, expected: tuple[type[BaseException], ...]
    ) -> None:
        self.seed = seed
        self.store = store
        self.expected = expected
        self.chance = random.Random(seed)
        self.schedule = Schedule(self.chance)
        self.clock = Clock(self.schedule)
        self.disk = Disk()
        self.tick_s = self.chance.choice((0.0, 0.00001, 0.0005))
        self.members: dict[str, Any] = {}
        """All that ever were, by their ids: see `embedded.py`."""
        self.nodes: list[Node] = []
        self.unburied: list[Process] = []
        self.history: list[Operation] = []
        self._story: list[tuple[float, object]] = []
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        """What happened that is no operation."""
        self.is_calm = False
        """Faults have stopped, and every handler is well."""
        self.is_out = False
        """What some handlers need is out."""

    # --- what is told of it -----------------------------------------------------------------

    def record(self, operation: Operation) -> None:
        """Add to the history."""
        self.history.append(operation)
        self._story.append((self.schedule.now_s, operation))

    def note(self, line: str) -> None:
        """Add to the story."""
        self._story.append((self.schedule.now_s, line))

    def story(self) -> Iterator[str]:
        """What happened, line by line."""
        for at_s, what in self._story:
            yield f"{at_s:9.4f}  {what}"

    def went_wrong(self, where: str, error: BaseException | None) -> None:
        """Something happened that must not, whatever befalls a process."""
        line = f"{where}: {type(error).__name__}: {error}" if error is not None else where
        self.note(f"WRONG: {line}")
        self.failures.append(line)

    # --- chance -----------------------------------------------------------------------------

    def delay_s(self) -> float:
        """How long a step of a thread takes."""
        return self.chance.expovariate(1000.0) * self.disk.slowness

    def restart_s(self) -> float:
        """How long a node is without a process."""
        return 0.02 if self.is_calm else self.chance.expovariate(6.0)

    def likely(self, probability: float) -> bool:
        """Whether something happens, while faults do."""
        return not self.is_calm and self.chance.random() < probability

    # --- processes --------------------------------------------------------------------------

    def add(self, name: str, main: Main) -> Node:
        """A new node, started."""
        node = Node(self, name, main)
        self.nodes.append(node)
        node.start()
        return node

    def processes(self) -> list[Process]:
        """Those that live."""
        return [node.process for node in self.nodes if node.process is not None]

    def run(self, until: Callable[[], bool], *, limit_s: float) -> bool:
        """See `Schedule.run`."""
        return self.schedule.run(until, limit_s=limit_s, turns_max=1_000_000)

    def end(self) -> None:
        """Nothing of it goes on."""
        for process in self.processes():
            process.vanish()
        for process in list(self.unburied):
            process.bury()


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inner = cast("tuple[BaseException, ...]", error.exceptions)
    return [leaf for each in inner for leaf in _leaves(each)]


class Story(logging.Handler):
    """Takes the library's log into the story of a world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._world.note(f"log: {record.getMessage()}")
