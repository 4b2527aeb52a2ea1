"""What befalls the processes of a world, until it is calm."""

from collections.abc import Callable

from eventlane.testing.simulation.people import People
from eventlane.testing.simulation.plan import Fault, Plan
from eventlane.testing.simulation.world import Process, World

__all__ = ["Mischief"]

_GROWN_MAX = 2
_AILING_S = 0.5
"""How long a disk, or what handlers need, is in trouble."""


class Mischief:
    """Faults, one after the other."""

    def __init__(self, world: World, plan: Plan, people: People) -> None:
        self._world = world
        self._plan = plan
        self._people = people
        self._grown = 0
        self._acts: dict[Fault, Callable[[], None]] = {
            "kill": lambda: self._on_one(Process.kill),
            "kill after commit": lambda: self._on_one(self._kill_after_commit),
            "kill unnoticed": lambda: self._on_one(self._kill_unnoticed),
            "freeze": lambda: self._on_one(
                lambda process: process.freeze(world.chance.choice((0.1, 0.8, 1.5)))
            ),
            "freeze at write": lambda: self._on_one(self._freeze_at_write),
            "stall": lambda: self._on_one(
                lambda process: process.stall(world.chance.choice((0.1, 0.7, 1.5)))
            ),
            "stop": lambda: self._on_one(Process.ask_to_stop),
            "grow": self._grow,
            "slow disk": self._slow_disk,
            "failing disk": self._failing_disk,
            "outage": self._outage,
            "clock forward": lambda: self._jump(world.chance.choice((100, 2_000))),
            "clock back": lambda: self._jump(-world.chance.choice((100, 2_000))),
        }

    def begin(self) -> None:
        """From now on."""
        if self._plan.faults and self._plan.faults_per_s:
            self._wait()

    def end(self) -> None:
        """No more."""
        world = self._world
        world.is_calm = True
        world.is_out = False
        world.disk.slowness, world.disk.failure_ratio = 1.0, 0.0
        for process in world.processes():
            process.dies_after_commit, process.freezes_at_write_s = False, 0.0
            process.thaw()

    def _wait(self) -> None:
        delay_s = self._world.chance.expovariate(self._plan.faults_per_s)
        self._world.schedule.call_later(delay_s, self._strike)

    def _strike(self) -> None:
        if self._world.is_calm:
            return
        fault = self._world.chance.choice(self._plan.faults)
        self._world.note(f"fault: {fault}")
        self._world.counts["faults"] += 1
        self._acts[fault]()
        self._wait()

    def _on_one(self, act: Callable[[Process], None]) -> None:
        living = self._world.processes()
        workers = [each for each in living if each.node.name.startswith(("worker", "late"))]
        chance = self._world.chance
        if living:
            act(chance.choice(workers if workers and chance.random() < 0.7 else living))

    def _kill_after_commit(self, process: Process) -> None:
        process.dies_after_commit = True

    def _freeze_at_write(self, process: Process) -> None:
        process.freezes_at_write_s = self._world.chance.choice((0.8, 1.5))

    def _kill_unnoticed(self, process: Process) -> None:
        process.kill(known_after_s=self._plan.limits.lease_s)

    def _grow(self) -> None:
        if self._grown < _GROWN_MAX:
            groups = self._world.chance.choice(self._plan.workers)
            self._world.add(f"late{self._grown}", self._people.work(groups))
            self._grown += 1

    def _slow_disk(self) -> None:
        self._world.disk.slowness = self._world.chance.choice((20.0, 200.0))
        self._world.schedule.call_later(_AILING_S, self._disk_is_fast)

    def _disk_is_fast(self) -> None:
        self._world.disk.slowness = 1.0

    def _failing_disk(self) -> None:
        self._world.disk.failure_ratio = self._world.chance.choice((0.2, 0.7))
        self._world.schedule.call_later(_AILING_S, self._disk_works)

    def _disk_works(self) -> None:
        self._world.disk.failure_ratio = 0.0

    def _outage(self) -> None:
        self._world.is_out = True
        self._world.schedule.call_later(_AILING_S, self._outage_ends)

    def _outage_ends(self) -> None:
        self._world.is_out = False

    def _jump(self, by_ms: int) -> None:
        self._world.clock.shift_ms += by_ms
        self._world.counts["clock jumps"] += 1
