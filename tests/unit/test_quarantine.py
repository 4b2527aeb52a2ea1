"""What runs alone: beside nothing of its group, or of its process, and holding up nothing else."""

import asyncio

from eventlane.clock import yield_to_loop
from eventlane.quarantine import Quarantine


class Group:
    """A group that is at rest unless it is told that a handler of it runs."""

    def __init__(self) -> None:
        self.holds = 0
        self.at_rest = asyncio.Event()
        self.at_rest.set()

    @property
    def may_start(self) -> bool:
        return not self.holds

    @property
    def is_halted(self) -> bool:
        return False

    def hold(self) -> None:
        self.holds += 1

    def unhold(self) -> None:
        self.holds -= 1

    async def rest(self) -> None:
        await self.at_rest.wait()


class Runs:
    """Runs alone, each until it is ended."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.one, self.other = Group(), Group()
        self.quarantine.groups += [self.one, self.other]
        self.running: set[str] = set()
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, name: str, group: Group, *, in_process: bool) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks.append(asyncio.ensure_future(self._run(name, group, in_process=in_process)))
        await settled()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def _run(self, name: str, group: Group, *, in_process: bool) -> None:
        async with self.quarantine.alone(group, in_process=in_process):
            self.running.add(name)
            await self._ends[name].wait()
            self.running.discard(name)


async def settled() -> None:
    for _ in range(10):
        await yield_to_loop()


async def test_what_runs_alone_in_its_group_holds_up_no_other_group() -> None:
    runs = Runs()
    await runs.begin("hangs", runs.one, in_process=False)
    assert (runs.one.may_start, runs.other.may_start) == (False, True)
    await runs.begin("beside", runs.other, in_process=False)
    assert runs.running == {"hangs", "beside"}
    await runs.end("beside")
    assert runs.other.may_start
    await runs.end("hangs")
    assert runs.one.may_start


async def test_alone_in_the_process_it_waits_for_what_is_alone_in_its_group() -> None:
    runs = Runs()
    await runs.begin("in group", runs.one, in_process=False)
    await runs.begin("in process", runs.other, in_process=True)
    assert runs.running == {"in group"}
    assert not runs.one.may_start
    assert not runs.other.may_start
    await runs.end("in group")
    assert runs.running == {"in process"}
    await runs.end("in process")
    assert runs.one.may_start
    assert runs.other.may_start


async def test_alone_in_the_process_it_waits_until_no_handler_of_any_group_runs() -> None:
    runs = Runs()
    runs.other.at_rest.clear()
    await runs.begin("alone", runs.one, in_process=True)
    assert runs.running == set()
    runs.other.at_rest.set()
    await settled()
    assert runs.running == {"alone"}
    await runs.end("alone")


async def test_two_that_are_to_be_alone_in_the_process_take_turns() -> None:
    runs = Runs()
    await runs.begin("first", runs.one, in_process=True)
    await runs.begin("second", runs.other, in_process=True)
    assert runs.running == {"first"}
    await runs.end("first")
    assert runs.running == {"second"}
    await runs.end("second")
    assert runs.one.may_start
    assert runs.other.may_start
