"""`make soak`: publish, handle, fail, replay and kill for so many minutes; then everything is told.

A publisher, an operator and several workers of each of two groups work on topics with retention.
Workers are killed (-9) or stopped (SIGTERM) at random and started again, but for one in each
group, which lives as long as the publisher, so that it is seen whether its memory grows. After
each round everything is drained, and the round's history is judged by the checker and forgotten:
a long soak needs no more memory than a short one.

Flat means: the largest of the last third is at most 1.2 times that of the middle third, and a
constant (growth.py); the first third is for warming up. Dead letters, and what operators did, no
retention takes away: they are left out, and told apart. A broker runs retention each minute; here
it is run more often, so that short runs have several of them in each third.
"""

import argparse
import asyncio
import gc
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from eventlane import App, Conflict
from eventlane.clock import SystemClock, sleep
from eventlane.testing.checker import check
from eventlane.testing.history import (
    Acquired,
    Ended,
    Final,
    Letter,
    Log,
    Operation,
    Published,
    Started,
)
from eventlane.topic import DLQ_SUFFIX
from tests.crash.children import Child, Children
from tests.crash.growth import (
    MEGABYTE,
    Level,
    kept_bytes,
    resident_bytes,
    size_of,
    table_of,
)
from tests.crash.processes import GROUPS
from tests.crash.recording import embedded, file_of, progress_of
from tests.crash.soaked import hush, made_app
from tests.crash.test_kill import uncharged

TOPIC = "steps"
ROUND_S = 25.0
DRAIN_S_MAX = 120.0
SAMPLED_S = 1.0
RETENTION_S = 5.0
LIFE_S = (0.4, 2.5)
"""How long it takes until the next worker is killed."""
KILLED = 0.75
"""This share of them by -9."""

_Place = tuple[str, str, int]


class Soak:
    """One run of it."""

    def __init__(self, app: App, children: Children, directory: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.worker = Level("memory of a worker", 4 * MEGABYTE)
        self.publisher = Level("memory of the publisher", 4 * MEGABYTE)
        self.judge = Level("memory of the process that judges", 16 * MEGABYTE)
        self.file = Level("the file, but for what is kept for ever", MEGABYTE)
        self.wal = Level("its write-ahead log", 4 * MEGABYTE)
        self.letters_bytes = self.notices_bytes = 0
        """What is kept for ever: dead letters and what operators did; and what topics say of it."""
        self._app = app
        self._children = children
        self._directory = directory
        self._chance = random.Random(seed)
        self._workers: dict[str, list[Child]] = {}
        self._base: dict[_Place, Acquired] = {}
        """Who owns what, as the next round begins."""
        self._last_letter: UUID | None = None

    @property
    def levels(self) -> Sequence[Level]:
        return self.worker, self.publisher, self.judge, self.file, self.wal

    async def run(self, duration_s: float, workers: int) -> None:
        """Go through it; what is wrong is in `violations` afterwards."""
        began_s = time.monotonic()
        hush(self._directory).unlink(missing_ok=True)
        publisher = await self._children.start("publisher", self._directory, 0)
        for group in GROUPS:
            self._workers[group] = [await self._start(group) for _ in range(workers)]
        sampling = asyncio.create_task(self._sample(began_s, publisher))
        try:
            while (left_s := began_s + duration_s - time.monotonic()) > 0:
                await self._load(min(ROUND_S, left_s))
                await self._drain()
                await self._judge()
                hush(self._directory).unlink()
                self._say_round(time.monotonic() - began_s)
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
        for child in (publisher, *(each for group in self._workers.values() for each in group)):
            await self._children.stop(child)

    def _say_round(self, passed_s: float) -> None:
        counts = self.counts
        print(
            f"  {passed_s:6.0f} s: round {counts['rounds']}, {counts['events']:,} events, "
            f"{counts['kills']} kills, {len(self.violations)} violations",
            flush=True,
        )

    # --- load -------------------------------------------------------------------------------

    async def _start(self, group: str) -> Child:
        return await self._children.start("worker", self._directory, group)

    async def _load(self, duration_s: float) -> None:
        """Kill workers at random, while an operator does what operators do."""
        seed = self._chance.randrange(1 << 32)
        operator = await self._children.start("operator", self._directory, seed)
        until_s = time.monotonic() + duration_s
        while (left_s := until_s - time.monotonic()) > 0:
            await sleep(min(left_s, self._chance.uniform(*LIFE_S)))
            group = self._chance.choice(list(GROUPS))
            victim = self._chance.randrange(1, len(self._workers[group]))
            if self._chance.random() < KILLED:
                await self._children.kill(self._workers[group][victim])
                self.counts["kills"] += 1
            else:
                await self._children.stop(self._workers[group][victim])
                self.counts["restarts"] += 1
            self._workers[group][victim] = await self._start(group)
        await self._children.kill(operator)

    async def _drain(self) -> None:
        """Publish nothing more, and replay what is dead until everything is done."""
        hush(self._directory).touch()
        await self._children.until(
            lambda: any(what == "hushed" for _, what, *_ in self._children.said), "silence"
        )
        app = self._app
        for group in GROUPS:
            with suppress(Conflict):
                await app.resume(group)

        async def is_done() -> bool:
            for each in await app.operations(state="paused"):
                await (await app.operation(each.id)).cancel(reason="the round ends")
            if archived := await app.dead_letters(state="archived"):
                await app.restore(archived, reason="the round ends")
            if dead := await app.dead_letters():
                await app.replay(
                    dead,
                    reason="the round ends",
                    rate_per_s=None,
                    canary=False,
                    pause_above=None,
                    allow_gap=True,
                )
            accounts = (await app.status()).groups
            for name, account in accounts.items():
                assert account.balances, f"{name}: {account}"
            is_left = any(each.done != each.entered for each in accounts.values())
            return not is_left and not await app.operations(state="running")

        await self._children.until(is_done, "that everything is done", DRAIN_S_MAX)

    # --- the verdict ------------------------------------------------------------------------

    async def _judge(self) -> None:
        """Judge what was recorded in this round, and forget it."""
        recorded = self._children.take()
        final = await self._final()
        history = [*self._base.values(), *map(uncharged, recorded), final]
        verdict = check(history)
        counts = self.counts
        counts["rounds"] += 1
        counts["checks"] += sum(verdict.checked.values())
        if not verdict.clean:
            self.violations.append(f"round {counts['rounds']}: {verdict}")
        for each in recorded:
            counts["events"] += isinstance(each, Published)
            counts["failed"] += isinstance(each, Ended) and each.outcome == "failed"
            if isinstance(each, Started):
                counts["attempts"] += 1
                counts["replayed"] += each.replayed
        counts["dead"] += len(final.letters or ())
        await self._check_accounts()
        self._begin_anew(recorded, final)
        gc.collect()  # What the checker knew refers to itself, and would seem to grow.

    async def _check_accounts(self) -> None:
        """What was acknowledged has entered each group, and each event has one effect in each."""
        status = await self._app.status()
        published = self.counts["events"]
        found = {
            "on the log": status.topics[TOPIC].published,
            **{f"entered {name}": status.groups[name].entered for name in GROUPS},
            **{f"done in {name}": status.groups[name].done for name in GROUPS},
        }
        wrong = {what: count for what, count in found.items() if count != published}
        if wrong:
            self.violations.append(f"{published} events were acknowledged, but {wrong}")
        effects = status.topics["effects"].published
        if effects != len(GROUPS) * published:
            self.violations.append(f"{published} events had {effects} effects in two groups")

    async def _final(self) -> Final:
        """What the broker says, of dead letters only what it had not said before."""
        app = self._app
        logs: dict[int, list[tuple[int, bytes | None, UUID]]] = {}
        ends = await app._connected.ends(TOPIC)
        async for message in app.read(TOPIC):
            event = (message.offset, message.key, message.event_id)
            logs.setdefault(message.partition, []).append(event)
        letters: list[Letter] = []
        while found := await app.dead_letters(state=None, after=self._last_letter):
            self._last_letter = found[-1].id
            letters += [
                Letter(
                    group=each.group,
                    topic=each.topic,
                    partition=each.partition,
                    offset=each.offset,
                    state=each.state,
                    on_dead=each.on_dead,
                )
                for each in found
            ]
        status = await app.status()
        return Final(
            idle=True,
            log=tuple(
                Log(
                    topic=TOPIC,
                    partition=partition,
                    events=tuple(logs.get(partition, ())),
                    first=first,
                )
                for partition, (first, _) in enumerate(ends)
            ),
            progress=tuple(progress_of(file_of(app), TOPIC, list(GROUPS))),
            groups={name: status.groups[name] for name in GROUPS},
            letters=tuple(letters),
        )

    def _begin_anew(self, recorded: Sequence[Operation], final: Final) -> None:
        """The next history begins with who owns what now, and where its group stands."""
        for each in recorded:
            if isinstance(each, Acquired):
                self._base[each.group, each.topic, each.partition] = each
        for stands in final.progress or ():
            place = (stands.group, stands.topic, stands.partition)
            before = self._base[place]
            self._base[place] = Acquired(
                process=before.process,
                group=before.group,
                topic=before.topic,
                partition=before.partition,
                epoch=before.epoch,
                watermark=stands.watermark,
            )

    # --- what grows -------------------------------------------------------------------------

    async def _sample(self, began_s: float, publisher: Child) -> None:
        """Measure, and let retention run, until cancelled."""
        broker: Any = embedded(self._app)
        file = file_of(self._app)
        retention_s = began_s
        while True:
            await sleep(SAMPLED_S)
            now_s = time.monotonic()
            if now_s >= retention_s + RETENTION_S:
                await broker.run_retention(SystemClock().now_ms())
                retention_s = now_s
            workers = [each.pid for group in self._workers.values() for each in group]
            memory = resident_bytes([publisher.pid, os.getpid(), *workers])
            passed_s = now_s - began_s
            self.publisher.note(passed_s, memory[publisher.pid])
            self.judge.note(passed_s, memory[os.getpid()])
            self.worker.note(passed_s, max(memory.get(each, 0) for each in workers))
            topics = (await self._app.status()).topics
            self.notices_bytes = sum(
                each.size_bytes for name, each in topics.items() if name.endswith(DLQ_SUFFIX)
            )
            self.letters_bytes = kept_bytes(file)
            wal = size_of(Path(f"{file.path}-wal"))
            self.wal.note(passed_s, wal)
            self.file.note(passed_s, size_of(file.path) - self.letters_bytes - self.notices_bytes)


async def soak(duration_s: float, seed: int, workers: int, place: Path) -> tuple[Soak, float]:
    """Go through one in a directory; and how long it took."""
    print(
        f"soak: seed {seed}, {duration_s / 60:g} minutes, {workers} workers in each of "
        f"{len(GROUPS)} groups, rounds of {ROUND_S:g} s",
        flush=True,
    )
    directory = place / "log"
    began_s = time.monotonic()
    async with (
        made_app(directory) as app,
        Children("tests.crash.soaked", place / "logs") as children,
    ):
        soaking = Soak(app, children, directory, seed)
        try:
            await soaking.run(duration_s, workers)
        except AssertionError as error:  # what is waited for does not come, or a process failed
            soaking.violations.append(str(error))
        return soaking, time.monotonic() - began_s


def summary_of(soaking: Soak, passed_s: float) -> str:
    """What happened, and how large everything was."""
    counts = soaking.counts
    return (
        f"{counts['events']:,} events in {passed_s:,.0f} s, each in {len(GROUPS)} groups: "
        f"{counts['attempts']:,} attempts, {counts['failed']:,} failed, {counts['dead']:,} dead, "
        f"{counts['replayed']:,} runs of replays\n"
        f"{counts['kills']} workers killed (-9), {counts['restarts']} restarted (SIGTERM); "
        f"{counts['rounds']} rounds judged, {counts['checks']:,} checks\n\n"
        f"{table_of(soaking.levels, passed_s)}\n"
        f"kept for ever: {soaking.letters_bytes / MEGABYTE:.1f} MB of dead letters and of what "
        f"operators did, {soaking.notices_bytes / MEGABYTE:.1f} MB on dead-letter topics\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--workers", type=int, default=3, help="in each group (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eventlane-soak-") as place:
        soaking, passed_s = asyncio.run(
            soak(60 * options.minutes, options.seed, options.workers, Path(place))
        )
    found = [
        *soaking.violations,
        *(f"{each.name} grows" for each in soaking.levels if not each.is_flat(passed_s)),
    ]
    print(summary_of(soaking, passed_s), *found, sep="\n")
    print(f"{'NOT CLEAN' if found else 'CLEAN'}, seed {options.seed}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
