"""kill -9 of real processes, at random moments: nothing is lost, overtaken or charged twice.

A publisher, workers and an operator are killed and started again, for so many rounds, while some
events fail, some are parked and some die: all of them at random, or one of several workers in each
round. Then all that is dead is replayed until nothing is left, and the history of all processes is
judged.
"""

import os
import random
import time
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from eventlane import App, Conflict
from eventlane.testing.checker import Kind, check
from eventlane.testing.history import Acquired, Final, Operation, Published, Started
from tests.crash.children import Child, Children
from tests.crash.processes import GROUPS, KEYS, Effect, Step, made_app
from tests.crash.recording import file_of, final_of

SEED = os.environ.get("KILL_SEED")
NUMBERS_A_PUBLISHER = 1_000_000
LOOKED_FOR = (Kind.LOST, Kind.OVERTAKE, Kind.CROSS_GROUP_LEAK, Kind.ATTEMPTS_DOWN)


class Plan(NamedTuple):
    """Who is there, and how many of the victims die in a round."""

    rounds: int
    roles: tuple[str, ...]
    victims: tuple[str, ...]
    at_once: tuple[int, ...]


ANYBODY = Plan(
    rounds=int(os.environ.get("KILL_ROUNDS", "20")),
    roles=("publisher", "worker", "worker", "operator"),
    victims=("publisher", "worker", "operator"),
    at_once=(1, 1, 2, 3, 4),
)
ONE_WORKER = Plan(
    rounds=int(os.environ.get("WORKER_KILL_ROUNDS", "8")),
    roles=("publisher", "operator", "worker", "worker", "worker", "worker"),
    victims=("worker",),
    at_once=(1,),
)


async def test_kill_9_loses_nothing_keeps_order_and_charges_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await go_through(ANYBODY, tmp_path, capsys)


async def test_kill_9_of_one_of_several_workers_loses_leaks_and_overtakes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await go_through(ONE_WORKER, tmp_path, capsys)


async def go_through(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32) if SEED is None else int(SEED)
    with capsys.disabled():
        print(f"\nkill -9: seed {seed} ", end="", flush=True)
    chance = random.Random(seed)
    directory = tmp_path / "log"
    async with (
        made_app(str(directory)) as app,
        Children("tests.crash.processes", tmp_path / "logs") as children,
    ):
        await app.publish_many([Step(key, 0) for key in KEYS])
        began_s = time.monotonic()
        kills = await kill_at_random(plan, children, directory, chance)
        round_s = (time.monotonic() - began_s) / plan.rounds
        worker = await children.start("worker", directory, 0)
        await replay_until_nothing_is_left(children, app, plan.rounds)
        await children.stop(worker)
        history = [*children.history, await final_of(app, "steps", list(GROUPS))]
        effects = [app.decode(each, Effect) async for each in app.read(Effect)]
        steps = [app.decode(each, Step) async for each in app.read(Step)]
        check_end(app)
        letters = await app.dead_letters(state=None, limit=1_000_000)

    verdict = check(uncharged(each) for each in history)
    assert verdict.clean, str(verdict)
    assert not {*LOOKED_FOR} & {*verdict.unchecked}, f"not looked for: {verdict.unchecked}"
    assert "crash" not in {each.stage for each in letters}
    acknowledged = sum(isinstance(each, Published) for each in history)
    assert acknowledged > plan.rounds
    # An effect is written with its outcome: each event has one in each group, however often it ran.
    assert Counter((each.group, each.key, each.number) for each in effects) == Counter(
        (group, step.key, step.number) for group in GROUPS for step in steps
    )
    check_order(history)
    operated = sum(what == "operated" for _, what, *_ in children.said)
    replays = sum(isinstance(each, Started) and each.replayed for each in history)
    with capsys.disabled():
        print(
            f"\nkill -9: seed {seed}, {plan.rounds} rounds of {round_s:.1f} s, {kills} processes "
            f"killed, {acknowledged:,} events acknowledged, {children.runs:,} runs of handlers, "
            f"{replays:,} of replays, {operated:,} changes by operators: nothing lost, overtaken, "
            f"leaked, and no attempt forgotten, {sum(verdict.checked.values()):,} checks",
            flush=True,
        )


async def kill_at_random(
    plan: Plan, children: Children, directory: Path, chance: random.Random
) -> int:
    """Kill some of the processes, and start them again, for so many rounds."""
    starts = 0

    async def started(role: str) -> Child:
        nonlocal starts
        starts += 1
        number = starts * NUMBERS_A_PUBLISHER if role == "publisher" else chance.randrange(1 << 32)
        return await children.start(role, directory, number)

    family = [await started(role) for role in plan.roles]
    mortal = [place for place, role in enumerate(plan.roles) if role in plan.victims]
    kills = 0
    for _ in range(plan.rounds):
        runs = children.runs + chance.randrange(1, 600)
        await children.until(partial(has_run, children, runs), "that the workers go on")
        victims = chance.sample(mortal, chance.choice(plan.at_once))
        await children.kill(*(family[each] for each in victims))
        kills += len(victims)
        for each in victims:
            family[each] = await started(plan.roles[each])
    await children.kill(*family)
    return kills + len(family)


def has_run(children: Children, runs: int) -> bool:
    return children.runs >= runs


async def replay_until_nothing_is_left(children: Children, app: App, rounds: int) -> None:
    """Let everything go on, and restore and replay what is dead, until everything is done."""
    for group in GROUPS:
        with suppress(Conflict):
            await app.resume(group)

    async def is_done() -> bool:
        for each in await app.operations(state="paused", limit=1_000_000):
            await (await app.operation(each.id)).cancel(reason="the end")
        if archived := await app.dead_letters(state="archived"):
            await app.restore(archived, reason="the end")
        if dead := await app.dead_letters():
            await app.replay(
                dead,
                reason="the end",
                rate_per_s=None,
                canary=False,
                pause_above=None,
                allow_gap=True,
            )
        status = await app.status()
        for name, account in status.groups.items():
            assert account.balances, f"{name}: {account}"
        return all(each.done == each.entered for each in status.groups.values()) and all(
            each.has_ended for each in await app.operations(limit=1_000_000)
        )

    # What was in flight at two kills runs alone, so that this takes its time.
    await children.until(is_done, "that everything is done in the end", 30 + rounds)


def uncharged(each: Operation) -> Operation:
    """The same, without the deaths that an event is charged with.

    A kill from outside may come when an event is to run alone and has not begun, or has just ended.
    It is charged, though it did nothing (`crashes_max` times in a row would make it dead): whom a
    death is charged to where events kill is looked at in test_poison.py.
    """
    if isinstance(each, Acquired):
        return msgspec.structs.replace(each, crashes=())
    if isinstance(each, Final):
        letters = [msgspec.structs.replace(letter, crashes=0) for letter in each.letters or ()]
        return msgspec.structs.replace(each, letters=tuple(letters))
    return each


def check_end(app: App) -> None:
    """Nothing is left over in the file."""
    execute = file_of(app).reader.execute
    for table in ("attempts", "parked", "command"):
        rows = execute(f"SELECT * FROM {table}").fetchall()
        assert rows == [], f"{table}: {rows}"
    (running,) = execute("SELECT count(*) FROM operation WHERE ended_ms IS NULL").fetchone()
    assert not running
    unresolved = execute("SELECT state, count(*) FROM letter GROUP BY state").fetchall()
    assert {state for state, _ in unresolved} <= {"resolved"}, unresolved
    closed = execute("SELECT * FROM lane WHERE due_ms IS NOT -1").fetchall()
    assert closed == [], closed


def check_order(history: list[Operation]) -> None:
    """What the checker says of order and attempts, once more and in a few lines."""
    of_worker: dict[str, dict[tuple[str, bytes | None], int]] = defaultdict(dict)
    attempts: dict[tuple[str, int, int], int] = defaultdict(int)
    for run in history:
        if not isinstance(run, Started) or run.late:
            continue
        latest, lane = of_worker[run.process], (run.group, run.key)
        assert run.offset >= latest.get(lane, -1), f"{run} after {latest[lane]}"
        latest[lane] = run.offset
        if not run.replayed:
            place = (run.group, run.partition, run.offset)
            assert run.attempt >= attempts[place], f"{run} after attempt {attempts[place]}"
            attempts[place] = run.attempt
