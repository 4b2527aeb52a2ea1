"""One history: drawn, simulated, checked."""

import gc
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eventlane.errors import HandlerStuck, StorageError
from eventlane.testing.checker import Verdict, check
from eventlane.testing.history import (
    Acquired,
    Died,
    Operation,
    Published,
    Settled,
    Started,
    encode,
)
from eventlane.testing.simulation.expectations import Expectations
from eventlane.testing.simulation.loop import Loop
from eventlane.testing.simulation.mischief import Mischief
from eventlane.testing.simulation.observer import Observer
from eventlane.testing.simulation.people import People
from eventlane.testing.simulation.plan import Plan, draw
from eventlane.testing.simulation.storage import Store
from eventlane.testing.simulation.world import Story, World

__all__ = ["Report", "simulate"]

_EXPECTED = (StorageError, HandlerStuck)
"""With what a process may end: the disk failed as it started, or a handler never ends."""
_MENDED_S = 120.0
_STOPPED_S = 20.0


@dataclass(frozen=True)
class Report:
    """What became of one history."""

    seed: int
    plan: Plan
    history: tuple[Operation, ...]
    verdict: Verdict
    failures: tuple[str, ...]
    """What the checker cannot see: what did not end, what was raised where nothing may be."""
    counts: Counter[str]
    """What happened, and how often."""
    story: Callable[[], Iterator[str]]
    """What happened, line by line."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return self.verdict.clean and not self.failures

    @property
    def digest(self) -> str:
        """The same for the same history."""
        return hashlib.blake2b(b"".join(map(encode, self.history)), digest_size=8).hexdigest()

    def __str__(self) -> str:
        head = f"seed {self.seed}: {len(self.history)} operations, digest {self.digest}"
        lines = [head, *self.failures, str(self.verdict)]
        if not self.clean:
            lines.append(f"again: python -m eventlane.testing.simulation --seed {self.seed} -v")
        return "\n".join(lines)


def simulate(seed: int, store: Store) -> Report:
    """Simulate the history of a seed, and check it. Not from within an event loop."""
    store.empty()
    world = World(seed, store, expected=_EXPECTED)
    with Loop.with_generators(), _seeded(seed), _told(world):
        try:
            return _simulate(world)
        finally:
            world.end()


def _simulate(world: World) -> Report:
    plan = draw(world.chance)
    world.note(str(plan))
    expectations = Expectations(world)
    observer = Observer(
        world.store.connection,
        record=world.record,
        process_of=lambda member: world.members[member].process.name,
        is_written=expectations.is_written,
    )
    people = People(world, plan, observer, expectations)
    for number, groups in enumerate(plan.workers):
        world.add(f"worker{number}", people.work(groups))
    world.add("publisher", people.publish)
    world.add("operator", people.operate)
    mischief = Mischief(world, plan, people)
    mischief.begin()
    world.run(lambda: False, limit_s=plan.troubled_s)
    mischief.end()
    world.note("all is calm")
    mender = world.add("mender", people.mend)
    world.run(
        lambda: mender.is_over or bool(world.failures), limit_s=world.schedule.now_s + _MENDED_S
    )
    if not (mender.is_over or world.failures):
        world.failures.append(f"it does not come to rest: {people.unmended}")
    _stop(world)
    observer.look()
    if world.schedule.spins:
        world.failures.append("an event loop turns without end, and nothing comes of it")
    final = observer.final(idle=mender.is_over, now_ms=world.clock.now_ms())
    world.record(final)
    world.failures.extend(expectations.broken(final))
    return Report(
        seed=world.seed,
        plan=plan,
        history=tuple(world.history),
        verdict=check(world.history, ordering={each.name: each.ordering for each in plan.groups}),
        failures=tuple(world.failures),
        counts=_counted(world),
        story=world.story,
    )


def _stop(world: World) -> None:
    """Ask all processes to end, and wait until they have."""
    for node in world.nodes:
        node.is_wanted = False
    for process in world.processes():
        process.ask_to_stop()
    world.run(lambda: not world.processes(), limit_s=world.schedule.now_s + _STOPPED_S)
    if world.processes():
        names = ", ".join(each.name for each in world.processes())
        world.failures.append(f"asked to stop, these do not end: {names}")


def _counted(world: World) -> Counter[str]:
    """What happened, in words that make a list."""
    runs = [each for each in world.history if isinstance(each, Started)]
    settled = [each for each in world.history if isinstance(each, Settled)]
    written = [each for each in settled if each.accepted]
    return Counter(
        {
            "operations": len(world.history),
            "events published": sum(isinstance(each, Published) for each in world.history),
            "runs of handlers": len(runs),
            "runs of replays": sum(each.replayed for each in runs),
            "retries": sum(each.attempt > 1 for each in runs),
            "events parked": sum(len(each.parked) for each in written),
            "dead letters": sum(len(each.dead) for each in written),
            "partitions taken over": sum(
                isinstance(each, Acquired) and each.epoch > 1 for each in world.history
            ),
            "settlements fenced": sum(each.stale and not each.accepted for each in settled),
            "processes that died": sum(isinstance(each, Died) for each in world.history),
            **world.counts,
        }
    )


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """What the library draws itself (jitter) is drawn from the seed as well."""
    before = random.getstate()
    random.seed(seed)
    collects = gc.isenabled()
    # What a dead process leaves is taken apart at its end, and not whenever it happens to be.
    gc.disable()
    try:
        yield
    finally:
        random.setstate(before)
        if collects:
            gc.enable()


@contextmanager
def _told(world: World) -> Generator[None]:
    """The library's log goes into the story."""
    log = logging.getLogger("eventlane")
    before = log.level, log.propagate
    handler = Story(world)
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
