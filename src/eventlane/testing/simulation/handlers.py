"""Handlers that do what a seed says: well, badly, slowly, or not at all any more."""

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from eventlane.breaker import Dependency
from eventlane.clock import sleep
from eventlane.handler import Context
from eventlane.outcome import Dead, Pause, RetryLater, Skipped
from eventlane.testing.history import Ended, RunOutcome, Started
from eventlane.testing.simulation.embedded import SimulatedApp
from eventlane.testing.simulation.events import TOPIC, Echo
from eventlane.testing.simulation.expectations import Expectations
from eventlane.testing.simulation.observer import Observer
from eventlane.testing.simulation.plan import FINE, Act, Group
from eventlane.testing.simulation.world import Process, World

__all__ = ["Handlers"]

_FOR_EVER_S = 1e6
_TIMES = (1, 1, 2, 6, 6)
"""How often in a row an event may be in trouble."""
_leaked: ContextVar[int] = ContextVar("leaked")


class _Boom(Exception):
    """What handlers raise."""


class _Outage(Exception):
    """What handlers raise while what they need is out."""


class Handlers:
    """The handlers of all groups. What they do to an event is drawn when it is met first."""

    def __init__(self, world: World, observer: Observer, expectations: Expectations) -> None:
        self._world = world
        self._observer = observer
        self._expectations = expectations
        self._fates: dict[tuple[str, bytes], list[Act]] = {}
        """For each group and event what is done to it, run by run; the last act is repeated."""

    def dependencies(self, group: Group) -> list[Dependency]:
        """What a group needs."""
        if not group.needs_more:
            return []
        return [
            Dependency("more", trips_on=_Outage, failures=2, probe_s=0.05, probe_s_max=0.2),
        ]

    def of(self, group: Group, app: SimulatedApp) -> Callable[..., Any]:
        """The handler of a group."""

        async def handle(_: Any, context: Context[Any]) -> Any:
            return await self._run(app.process, group, context)

        def handle_in_thread(_: Any, context: Context[Any]) -> Any:
            return self._run_in_thread(app.process, group, context)

        async def handle_list(_: Any, contexts: list[Context[Any]]) -> Any:
            if len(contexts) == 1:
                return [await self._run(app.process, group, contexts[0])]
            return await self._run_list(app.process, group, contexts)

        if group.kind == "list":
            return handle_list
        return handle if group.kind == "async" else handle_in_thread

    # --- runs -------------------------------------------------------------------------------

    async def _run(self, process: Process, group: Group, context: Context[Any]) -> Any:
        started = self._begin(process, group, context)
        act = self._act(group, context)
        ended: RunOutcome = "cancelled"
        began_s = self._world.schedule.now_s
        try:
            result = await self._perform(act, process, context)
            ended = "failed" if self._is_late(group, began_s) else _ended(result)
            return result
        except (_Boom, _Outage) as error:
            ended = "failed"
            self._note_failure(group, started, error)
            raise
        except asyncio.CancelledError:
            if act == "cancel" or self._is_late(group, began_s):
                ended = "failed"
            raise
        finally:
            self._end(process, started, ended)

    def _run_in_thread(self, process: Process, group: Group, context: Context[Any]) -> Any:
        started = self._begin(process, group, context)
        act = self._act(group, context)
        if act == "kill":
            process.kill()
            return None
        try:
            result = self._finish(act, context)
        except (_Boom, _Outage) as error:
            self._note_failure(group, started, error)
            self._end(process, started, "failed")
            raise
        self._end(process, started, _ended(result))
        return result

    async def _run_list(
        self, process: Process, group: Group, contexts: list[Context[Any]]
    ) -> list[Any]:
        runs = [self._begin(process, group, each) for each in contexts]
        acts: list[Act] = [self._act(group, each) for each in contexts]
        results: list[Any] = []
        began_s = self._world.schedule.now_s
        try:
            for act, context in zip(acts, contexts, strict=True):
                results.append(await self._perform(act, process, context))
        except (_Boom, _Outage, asyncio.CancelledError):
            # None of them is charged: each is handled again, alone.
            for each in runs:
                self._end(process, each, "cancelled")
            raise
        is_late = self._is_late(group, began_s)
        for each, result in zip(runs, results, strict=True):
            self._end(process, each, "cancelled" if is_late else _ended(result))
        return results

    def _is_late(self, group: Group, began_s: float) -> bool:
        ran_s = self._world.schedule.now_s - began_s
        return bool(group.timeout_s and ran_s > group.timeout_s)

    def _begin(self, process: Process, group: Group, context: Context[Any]) -> Started:
        clock = self._world.clock
        clock.now_ms()
        started = Started.of(context, process=process.name, at_ms=clock.latest_ms)
        if process.is_alive:
            self._world.record(started)
            self._expectations.began(group, started)
            if (wrong := self._observer.wrong(started, context)) is not None:
                self._world.went_wrong(f"{started}: {wrong}", None)
        return started

    def _note_failure(self, group: Group, started: Started, error: Exception) -> None:
        # Nobody is to wait for what a former owner could not write.
        if isinstance(error, _Boom) and self._observer.is_owner(started):
            self._expectations.failed(group, started)

    def _end(self, process: Process, started: Started, outcome: RunOutcome) -> None:
        if process.is_alive:
            self._world.record(Ended.of(started, outcome))

    # --- what they do -----------------------------------------------------------------------

    def _act(self, group: Group, context: Context[Any]) -> Act:
        if self._world.is_calm:
            return "done"
        fate = self._fates.get((group.name, context.record.id))
        if fate is None:
            fate = self._fates[group.name, context.record.id] = self._fate(group)
        act = fate.pop(0) if len(fate) > 1 else fate[0]
        return "be out" if self._world.is_out and group.needs_more and act in FINE else act

    def _fate(self, group: Group) -> list[Act]:
        chance = self._world.chance
        well: Act = chance.choice(("done", "done", *FINE))
        if chance.random() >= group.trouble_ratio:
            return [well]
        act: Act = chance.choice(group.failing)
        times = 1 if act == "pause" else chance.choice((1, 1, 2, 6) if act == "kill" else _TIMES)
        return [*(act for _ in range(times)), well]

    async def _perform(self, act: Act, process: Process, context: Context[Any]) -> Any:
        chance = self._world.chance
        match act:
            case "slow" | "slow fail":
                await sleep(chance.expovariate(20.0))
            case "leak":
                _leaked.set(context.offset)
            case "hang":
                await sleep(_FOR_EVER_S)
            case "stubborn":
                with contextlib.suppress(asyncio.CancelledError):
                    await sleep(_FOR_EVER_S)
                await sleep(chance.choice((0.01, 0.01, 0.3, 2.0)))
            case "cancel":
                raise asyncio.CancelledError
            case "kill":
                await sleep(chance.choice((0.0, 0.01, 0.1)))
                process.kill()
                await sleep(_FOR_EVER_S)
            case _:
                pass
        return self._finish(act, context)

    def _finish(self, act: Act, context: Context[Any]) -> Any:
        if act in ("publish", "fail", "dead") and context.message.topic == TOPIC:
            key = "" if context.record.key is None else context.record.key.decode()
            # What fails has published too, and something else: nobody must ever see that.
            event_id = context.publish(Echo(key or "-", 0 if act == "publish" else context.attempt))
            if act != "publish":
                self._expectations.is_not_written(event_id)
        match act:
            case "fail" | "slow fail":
                raise _Boom(act)
            case "be out":
                raise _Outage
            case "skip":
                return Skipped("not wanted")
            case "later":
                return RetryLater(self._world.chance.choice((0.0, 0.1, 0.8)))
            case "dead":
                return Dead("hopeless")
            case "dead, go on":
                return Dead("hopeless", lane="continue")
            case "dead, stop":
                return Dead("hopeless", lane="stop")
            case "pause":
                return Pause("a pause")
            case "nonsense":
                return 42
            case _:
                return None


def _ended(returned: object) -> RunOutcome:
    if returned is None:
        return "done"
    if isinstance(returned, Skipped):
        return "skipped"
    return "cancelled" if isinstance(returned, Pause) else "failed"
