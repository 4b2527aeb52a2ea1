"""An event that kills its process ends as a dead letter, and nobody else pays for it."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from eventlane import App
from eventlane.testing.checker import check
from eventlane.testing.history import Died, Ended, Operation, Started
from tests.crash.children import Child, Children
from tests.crash.poison import BYSTANDERS, LONG, POISONS, Effect, Step, made_app
from tests.crash.recording import final_of

NUMBERS = range(4)
DEADLY = 1
"""Which number of a poisonous key kills."""
DEATHS = 6
"""As ever twice, alone in its group once, alone in its process three times."""
SCENARIOS = (
    "as ever",
    "in a thread",
    "in a list",
    "in one lane",
    "under continue",
    "parked",
    "behind a parked head",
    "replayed",
    "beside a slow group",
    "beside another one",
    "with an heir",
)


@pytest.mark.parametrize("turn", range(int(os.environ.get("POISON_TURNS", "1"))))
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_an_event_that_kills_its_process_dies_alone(
    scenario: str, turn: int, tmp_path: Path
) -> None:
    directory = tmp_path / "log"
    groups = ("main", LONG) if scenario == "beside a slow group" else ("main",)
    poisons = POISONS if scenario == "beside another one" else POISONS[:1]
    keys = (*BYSTANDERS, *poisons)
    async with (
        made_app(scenario, directory) as app,
        Children("tests.crash.poison", tmp_path / "logs") as children,
    ):
        for number in NUMBERS:
            await app.publish_many(
                [Step(key, number, kills=key in poisons and number == DEADLY) for key in keys]
            )
        await restart_until_rest(children, scenario, directory, app)
        if scenario == "replayed":
            (letter,) = await app.dead_letters()
            assert letter.stage == "handle"
            await app.replay(letter, reason="once more")
            await restart_until_rest(children, scenario, directory, app)
        letters = await app.dead_letters()
        found = sorted((each.group, each.key, each.stage, each.crashes) for each in letters)
        assert found == [("main", key.encode(), "crash", 3) for key in poisons]
        check_deaths(children.history, poisons)

        (directory / "mended").touch()
        await app.replay(letters, reason="mended")
        await restart_until_rest(children, scenario, directory, app)
        children.history.append(await final_of(app, "steps", groups))
        effects = [app.decode(each, Effect) async for each in app.read(Effect)]

    verdict = check(
        children.history, ordering={"main": "partition" if scenario == "in one lane" else "key"}
    )
    assert verdict.clean, str(verdict)
    # An effect is written with the outcome: each event has one, however often it ran.
    assert sorted((each.group, each.key, each.number) for each in effects) == sorted(
        (group, key, number) for group in groups for key in keys for number in NUMBERS
    )
    for each in children.history:
        if isinstance(each, Started) and each.key in [key.encode() for key in BYSTANDERS]:
            assert each.attempt == 1, f"a bystander was charged: {each}"


async def restart_until_rest(children: Children, scenario: str, directory: Path, app: App) -> None:
    """Start a worker whenever one is missing, until everything has an outcome."""
    workers: list[Child] = []
    wanted = 2 if scenario == "with an heir" else 1

    async def at_rest() -> bool:
        status = await app.status()
        blocked = {each.group for each in await app.dead_letters()}
        for name, account in status.groups.items():
            assert account.balances, account
            if account.open or account.pending or (account.parked and name not in blocked):
                return False
        return bool(status.groups)

    def dead() -> list[Child]:
        return [each for each in workers if each.returncode is not None]

    for _ in range(2 * DEATHS):
        while len(workers) < wanted:
            workers.append(await children.start("worker", scenario, directory))
        await children.until(lambda: bool(dead()) or at_rest(), "that everything has an outcome")
        if not dead():
            for worker in workers:
                await children.stop(worker)
            return
        for worker in dead():
            children.note_death(worker)
            workers.remove(worker)
    raise AssertionError(f"it went on killing: {await app.status()}")


def check_deaths(history: Sequence[Operation], poisons: Sequence[str]) -> None:
    """What ran when each of the processes died."""
    running: dict[str, dict[tuple[str, int, int], Started]] = {}
    deaths: list[list[Started]] = []
    for each in history:
        match each:
            case Started():
                place = each.group, each.partition, each.offset
                running.setdefault(each.process, {})[place] = each
            case Ended():
                del running[each.process][each.group, each.partition, each.offset]
            case Died():
                deaths.append(list(running.pop(each.process).values()))
            case _:
                pass
    poisonous = [key.encode() for key in poisons]
    alone: Counter[bytes | None] = Counter()
    for number, runs in enumerate(deaths):
        in_group = [run for run in runs if run.group == "main"]
        if number < 2:
            # Of two that kill, either may be the first, and the other one not have begun.
            assert any(run.key in poisonous for run in in_group)
            assert not any(run.alone for run in runs)
        else:
            assert len(in_group) == 1, f"it ran beside others in its group: {runs}"
            alone[in_group[0].key] += 1
            assert in_group[0].alone == (alone[in_group[0].key] > 1)
            assert len(runs) == 1 or not in_group[0].alone, f"it ran beside other groups: {runs}"
    assert alone == dict.fromkeys(poisonous, DEATHS - 2)
