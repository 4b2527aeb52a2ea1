"""Workers that are frozen, or killed, while they have events: others go on with these, in time."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from eventlane import App
from eventlane.testing.checker import Kind, check
from eventlane.testing.history import Acquired, Ended, Operation, Settled, Started
from tests.crash.children import Child, Children
from tests.crash.frozen import GROUP, LEASE_S, PARTITIONS, Effect, Step, holding, made_app, running
from tests.crash.recording import final_of

KEYS = tuple(f"k{number}" for number in range(8))


class Pair:
    """Two workers of one group, each with its share of the partitions."""

    def __init__(self, app: App, children: Children, directory: Path) -> None:
        self.app = app
        self.children = children
        self.directory = directory
        self._number = 0

    async def publish(self) -> None:
        await self.app.publish_many([Step(key, self._number) for key in KEYS])
        self._number += 1

    def owned(self) -> dict[int, str]:
        """Who acquired each partition last."""
        changes = [each for each in self.children.history if isinstance(each, Acquired)]
        return {each.partition: each.process for each in changes}

    def started(self, child: Child) -> set[tuple[int, int]]:
        """Where events are that it has begun to handle."""
        runs = [each for each in self.children.history if isinstance(each, Started)]
        return {(run.partition, run.offset) for run in runs if run.process == child.name}

    async def share(self) -> tuple[Child, Child]:
        one = await self.children.start("worker", self.directory)
        await self.children.until(lambda: len(self.owned()) == PARTITIONS, "that the first has all")
        two = await self.children.start("worker", self.directory)
        await self.until_shared(one, two)
        return one, two

    async def until_shared(self, one: Child, two: Child) -> None:
        names = {one.name, two.name}
        await self.children.until(
            lambda: set(self.owned().values()) == names, "that each of them has a partition"
        )

    async def seconds_until_handled_again(self, events: set[tuple[int, int]], by: Child) -> float:
        """How long it takes from now on."""
        clock_s = asyncio.get_running_loop().time
        began_s = clock_s()
        await self.children.until(lambda: events <= self.started(by), "that it handles them again")
        return clock_s() - began_s

    async def judge(self, *children: Child) -> None:
        """Everything is done, once in effect, and in order."""

        async def is_done() -> bool:
            return (await self.app.status()).groups[GROUP].done == self._number * len(KEYS)

        await self.children.until(is_done, "that everything is done")
        for child in children:
            await self.children.stop(child)
        history = fenced(self.children.history)
        verdict = check([*history, await final_of(self.app, "steps", [GROUP])])
        assert verdict.clean, str(verdict)
        assert not {Kind.LOST, Kind.OVERTAKE, Kind.ACCOUNTING} & {*verdict.unchecked}
        effects = [self.app.decode(each, Effect) async for each in self.app.read(Effect)]
        assert Counter((each.key, each.number) for each in effects) == Counter(
            (key, number) for key in KEYS for number in range(self._number)
        )


@asynccontextmanager
async def a_pair(tmp_path: Path) -> AsyncIterator[Pair]:
    directory = tmp_path / "log"
    async with (
        made_app(directory) as app,
        Children("tests.crash.frozen", tmp_path / "logs") as children,
    ):
        pair = Pair(app, children, directory)
        await pair.publish()
        yield pair


def fenced(history: Sequence[Operation]) -> list[Operation]:
    """The same, and of each settlement whether a newer epoch had been given out before."""
    epochs: dict[int, int] = {}
    found: list[Operation] = []
    for each in history:
        if isinstance(each, Acquired):
            epochs[each.partition] = each.epoch
        if isinstance(each, Settled) and each.epoch < epochs[each.partition]:
            found.append(msgspec.structs.replace(each, stale=True))
        else:
            found.append(each)
    return found


async def test_a_worker_that_wakes_after_its_lease_settles_nothing_and_goes_on(
    tmp_path: Path,
) -> None:
    async with a_pair(tmp_path) as pair:
        children = pair.children
        one, two = await pair.share()
        holding(pair.directory, one.name).touch()
        before = pair.started(one)
        await pair.publish()
        await children.until(
            lambda: [one.name, "settles"] in children.said, "that it is about to settle"
        )
        ended = {
            (each.partition, each.offset)
            for each in children.history
            if isinstance(each, Ended) and each.process == one.name
        }
        handled = ended - before
        assert handled
        one.send(signal.SIGSTOP)
        taken_s = await pair.seconds_until_handled_again(handled, two)
        assert taken_s < LEASE_S + 1
        holding(pair.directory, one.name).unlink()
        one.send(signal.SIGCONT)
        await children.until(
            lambda: any(
                isinstance(each, Settled) and each.process == one.name and not each.accepted
                for each in children.history
            ),
            "that what it settles is refused",
        )
        await children.until(
            lambda: "is no longer owned here" in one.last_words(), "that it says so"
        )
        await pair.until_shared(one, two)
        before = pair.started(one)
        await pair.publish()
        await children.until(lambda: pair.started(one) > before, "that it goes on as a member")
        await pair.judge(one, two)
        verdict = check(fenced(children.history))
        assert verdict.checked[Kind.FENCED_WRITE]


async def test_a_killed_worker_s_events_are_handled_again_within_a_second(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        one, two = await pair.share()
        before = pair.started(one)
        running(pair.directory).touch()
        await pair.publish()
        await pair.children.until(lambda: pair.started(one) > before, "that it handles some")
        cut = pair.started(one) - before
        await pair.children.kill(one)
        taken_s = await pair.seconds_until_handled_again(cut, two)
        assert taken_s < 1
        running(pair.directory).unlink()
        await pair.judge(two)
