"""What a dead letter says of an exception whose class says odd things of itself."""

from datetime import UTC, datetime, timedelta
from typing import Any

from eventlane import App, Context, Limits, Retry
from eventlane.outcome import DELAY_S_MAX
from eventlane.testing.stage import PATIENCE_S, Step, until


class Odd(Exception):
    """As a class may be that was made by hand, or is a proxy."""


class Plain(Exception):
    pass


async def test_a_letter_of_an_odd_exception_can_be_read_and_hides_no_other() -> None:
    Odd.__module__ = None  # type: ignore[assignment]  # that it is no text is what is tested
    Odd.__qualname__ = "Odd\ud800"
    app = App("embedded::memory:", partitions=1, version=3)  # type: ignore[arg-type]  # so is that this is none

    @app.subscribe(Step, group="odd", retry=Retry(attempts=2, immediate=1))
    async def handle(step: Step, _: Context[Any]) -> None:
        if step.number:
            raise Plain
        try:
            raise Odd
        except Odd as error:
            raise Plain from error

    async with app:
        await app.publish_many([Step("a", 0), Step("b", 1)])
        await app.run_until_idle(PATIENCE_S)
        caused, plain = await app.dead_letters()
        assert (caused.cause_class, caused.app_version) == ("Odd?", "3")
        assert (plain.error_class, plain.cause_class) == ("Plain", None)
        assert len(await app.failures()) == 2


async def test_the_module_of_an_exception_may_be_anything() -> None:
    class Strange(Exception):
        __module__ = None  # type: ignore[assignment]  # that it is no text is what is tested

    app = App("embedded::memory:", partitions=1)

    @app.subscribe(Step, group="odd", retry=Retry(attempts=1))
    async def handle(_step: Step, _: Context[Any]) -> None:
        raise Strange

    async with app:
        await app.publish(Step("a", 0))
        await app.run_until_idle(PATIENCE_S)
        (letter,) = await app.dead_letters()
        assert letter.error_module == "None"


async def test_a_retry_that_waits_for_tokens_without_end_has_a_due_time_that_can_be_kept() -> None:
    limits = Limits(retry_tokens_per_s=1e-300, retry_tokens_max=10)
    app = App("embedded::memory:", partitions=1, limits=limits)

    @app.subscribe(Step, group="dry", retry=Retry(immediate=0))
    async def handle(_step: Step, _: Context[Any]) -> None:
        raise Plain

    async def both_wait() -> bool:
        views = [each for key in "ab" for each in await app.lane("steps", key)]
        return all(each.due_at is not None for each in views) and len(views) == 2

    async with app, app.handling():
        await app.publish_many([Step("a", 0), Step("b", 0)])
        await until(both_wait, "both events to wait for a retry")
        due = [each.due_at for key in "ab" for each in await app.lane("steps", key)]
        latest = datetime.now(UTC) + timedelta(seconds=DELAY_S_MAX)
        assert max(each for each in due if each is not None) <= latest
