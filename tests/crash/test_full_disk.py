"""A disk that is really full, or really fails to write, while events are published and handled."""

import resource
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from eventlane import App, Context, Retry, RetryLater, StorageError
from eventlane.clock import SystemClock, yield_to_loop
from eventlane.outcome import Outcome
from eventlane.testing.checker import check
from eventlane.testing.history import Ended, Operation, Published, Started
from eventlane.testing.stage import GROUP, TOPIC, Step, Storage, until
from tests.crash.recording import RecordingBroker, file_of, final_of

REFUSED = 5
_FRAME_BYTES = 24 + 16384
"""Of SQLite's write-ahead log: a page with its header."""

Break = Callable[[App], AbstractContextManager[None]]


@contextmanager
def no_more_pages(app: App) -> Generator[None]:
    """SQLite finds the disk full: SQLITE_FULL."""
    connection = file_of(app).connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA max_page_count = {1 << 30}")


def no_longer_files(bytes_more: int) -> Break:
    """The system refuses to let a file grow by more: an I/O error, wherever in a frame it comes."""

    @contextmanager
    def limited(app: App) -> Generator[None]:
        log = file_of(app).path.with_name("eventlane.db-wal")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + bytes_more, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.parametrize(
    ("broken", "has_room"),
    [
        (no_more_pages, True),
        (no_longer_files(0), False),
        (no_longer_files(1), False),
        (no_longer_files(_FRAME_BYTES), True),
        (no_longer_files(2 * _FRAME_BYTES - 1), True),
        (no_longer_files(7 * _FRAME_BYTES + 5000), True),
    ],
    ids=["full", "no byte", "a byte", "a frame", "nearly two frames", "seven frames"],
)
async def test_a_disk_that_cannot_be_written_stops_everything_and_loses_nothing(
    broken: Break,
    has_room: bool,  # a parameter of pytest's
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    history: list[Operation] = []
    app = made_app(tmp_path / "log", "p1", history)
    refusals: list[StorageError] = []
    async with app, app.handling():
        await publish(app, history, range(20))
        with broken(app):
            for number in range(100, 100_000):
                try:
                    await publish(app, history, [number])
                except StorageError as error:
                    refusals.append(error)
                if len(refusals) == REFUSED:
                    break
            if not has_room:  # for a settlement, which is smaller than a publish
                await until(lambda: "cannot settle" in caplog.text, "that outcomes wait")
                assert (await app.status()).groups[GROUP].open > 0
        await publish(app, history, range(100_000, 100_020))
        await app.run_until_idle(20)
    async with made_app(tmp_path / "log", "p2", history) as again:
        await again.run_until_idle(20)
        account = (await again.status()).groups[GROUP]
        assert account.done == account.entered
        history.append(await final_of(again, TOPIC, [GROUP]))
    assert all("disk" in str(each) for each in refusals)
    verdict = check(history)
    assert verdict.clean, str(verdict)


def made_app(directory: Path, process: str, history: list[Operation]) -> App:
    commands: set[int] = set()
    storage = Storage(
        f"embedded:{directory}",
        wrap=lambda real: RecordingBroker(real, process, history.append, commands),
    )
    app = storage.app(partitions=2)

    @app.subscribe(Step, group=GROUP, retry=Retry(delay_s=0.01))
    async def handle(step: Step, ctx: Context) -> Outcome | None:
        run = Started.of(ctx, process=process, at_ms=SystemClock().now_ms())
        history.append(run)
        await yield_to_loop()
        fails = step.number % 7 == 3 and ctx.attempt < 3
        history.append(Ended.of(run, "failed" if fails else "done"))
        return RetryLater(0.01) if fails else None

    return app


async def publish(app: App, history: list[Operation], numbers: range | list[int]) -> None:
    for number in numbers:
        for key in "abc":
            position = await app.publish(Step(key, number))
            history.append(Published(**position._asdict(), key=key.encode()))
