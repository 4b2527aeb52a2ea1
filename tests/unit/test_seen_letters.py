"""Letters that an operator has seen, and that were changed before he decided."""

from functools import partial
from typing import Any

import pytest

from eventlane import App, Conflict, Context, DeadLetter, Retry
from eventlane.testing.stage import GROUP, Boom, Step


@pytest.fixture
def app() -> App:
    app = App("embedded::memory:", partitions=1, allow_edit=True)

    @app.subscribe(Step, group=GROUP, on_dead="continue", retry=Retry(attempts=1))
    async def handle(_step: Step, _: Context[Any]) -> None:
        raise Boom("no")

    return app


async def test_a_letter_is_changed_only_as_it_was_seen(app: App) -> None:
    async with app:
        await app.publish_many([Step("a", 0), Step("b", 0)])
        await app.run_until_idle(10)
        seen, other = sorted(await app.dead_letters(), key=lambda each: each.offset)
        await app.replay(seen, reason="try")
        await app.run_until_idle(10)
        (now,) = await app.dead_letters(ids=[seen.id])
        words = rf"{seen.id} .*{GROUP}@.*expected version {seen.version}, got {now.version}"
        for call in (
            partial(app.replay, [other.id, seen], reason="x"),
            partial(app.replay, (each for each in (other, seen)), reason="x"),
            partial(app.archive, [other, seen], reason="x"),
            partial(app.edit_and_replay, seen, {"key": "a", "number": 1}, reason="x"),
        ):
            with pytest.raises(Conflict, match=words):
                await call()
        assert (await app.replay([other, seen], dry_run=True)).refusal_count == 1
        assert [each.state for each in await app.dead_letters(state=None)] == ["open", "open"]
        await app.archive(seen.id, reason="by its id")
        with pytest.raises(Conflict, match=r"\(app@.*expected version 1, got 4"):
            await app.restore(seen, reason="x")
        archived = await app.dead_letters(state="archived")
        await app.restore(archived, reason="x")
        as_it_is: list[DeadLetter] = [*await app.dead_letters()]
        await app.archive(as_it_is, reason="x")
        assert await app.dead_letters() == []
