"""The N-th fsync fails, for N = 1, 2, 3, …: what was refused may be there, wholly and in order.

A process publishes and handles. At its N-th fsync the disk fails, and the process is killed at
once, or before it writes anything more, or it goes on. Whoever opens the file next finds all that
was acknowledged, and of what was refused either all or nothing.
"""

import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from eventlane.testing.checker import check
from eventlane.testing.history import Operation
from eventlane.testing.stage import PATIENCE_S, TOPIC, Step
from tests.crash.children import Children
from tests.crash.failing_sync import why_not
from tests.crash.recording import final_of
from tests.crash.syncing import GROUPS, KEYS, Effect, made_app

SAMPLE = int(os.environ.get("SYNC_SAMPLE", "8"))
"""How many of the runs there are; 0: every one."""
KILLED, GOES_ON = "killed before anything more is written", "goes on"
HOWS = {
    "killed at once": (1, 0),
    KILLED: (1, 1),
    "killed after three": (3, 3),
    GOES_ON: (1, None),
    "goes on after three": (3, None),
}
"""How many fail in a row, and for how many more the process lives."""


async def run_on(children: Children, directory: Path, fails_at: int, how: str) -> int:
    """One run, and its end; how many numbers are there that were not acknowledged."""
    children.history.clear()
    children.said.clear()
    count, lives_for = HOWS[how]
    child = await children.start("run", directory, fails_at, count, lives_for)
    returncode = await child.wait()
    children.note_death(child)
    try:
        # It may have come to its end before: how much goes into one settlement is chance.
        assert returncode in (0, -signal.SIGKILL)
        return await judge(children, directory)
    except BaseException as error:
        error.add_note(f"fsync {fails_at} failed: {how}\n{child.last_words()}")
        raise


async def judge(children: Children, directory: Path) -> int:
    """Whoever opens the file next finds what was acknowledged, and goes on."""
    history: list[Operation] = children.history
    acknowledged = {each[2] for each in children.said if each[1] == "acknowledged"}
    async with made_app(str(directory), "next", history.append) as app:
        await app.run_until_idle(PATIENCE_S)
        while letters := await app.dead_letters():
            await app.replay(letters, reason="the end", canary=False, rate_per_s=None)
            await app.run_until_idle(PATIENCE_S)
        steps = [app.decode(each, Step) async for each in app.read(Step)]
        effects = [app.decode(each, Effect) async for each in app.read(Effect)]
        history.append(await final_of(app, TOPIC, list(GROUPS)))
        status = await app.status()
    numbers = {key: [each.number for each in steps if each.key == key] for key in KEYS}
    assert numbers["a"] == numbers["b"] == numbers["c"], f"not wholly: {numbers}"
    assert numbers["a"] == sorted(numbers["a"]), f"not in order: {numbers}"
    assert acknowledged <= set(numbers["a"]), f"lost: {acknowledged.difference(numbers['a'])}"
    refused = Counter(each[2] for each in children.said if each[1] == "refused")
    for number, count in Counter(numbers["a"]).items():
        # Who repeats what was refused may find it there twice; and the last may not have been told.
        assert count <= max(1, refused[number] + (number in acknowledged)), f"not once: {numbers}"
    # An effect is written with its outcome.
    assert Counter((each.group, each.key, each.number) for each in effects) == Counter(
        (group, step.key, step.number) for group in GROUPS for step in steps
    )
    assert all(each.balances and each.done == each.entered for each in status.groups.values())
    verdict = check(history)
    assert verdict.clean, str(verdict)
    return len(numbers["a"]) - len(acknowledged)


async def test_whichever_fsync_fails_what_was_refused_is_there_wholly_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := why_not():
        message = f"fsync cannot be made to fail: {missing}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    seed = int(os.environ.get("SYNC_SEED", random.randrange(1 << 32)))
    with capsys.disabled():
        print(f"\nfailing fsync: seed {seed} ", end="", flush=True)
    async with Children("tests.crash.syncing", tmp_path / "logs") as children:
        assert await run_on(children, tmp_path / "sound", 0, GOES_ON) == 0
        (syncs,) = (each[2] for each in children.said if each[1] == "came to its end")
        at = next(each[3] for each in children.said if each[1:3] == ["acknowledged", 3])
        for how, there in ((KILLED, 1), (GOES_ON, 0)):
            assert await run_on(children, tmp_path / how, at, how) == there
            assert ["refused", 3] in [each[1:] for each in children.said]
        runs = [(fails_at, how) for fails_at in range(1, syncs + 1) for how in HOWS]
        if SAMPLE:
            runs = random.Random(seed).sample(runs, SAMPLE)
        for fails_at, how in runs:
            await run_on(children, tmp_path / "log", fails_at, how)
            shutil.rmtree(tmp_path / "log")
    with capsys.disabled():
        print(
            f"\nfailing fsync: seed {seed}, {len(runs)} runs of {syncs} fsyncs: nothing lost",
            flush=True,
        )
