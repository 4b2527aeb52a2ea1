"""Testing an application: the same app on a private broker, with a clock that jumps."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from eventlane.app import App
from eventlane.testing.clock import ManualClock

__all__ = ["ManualClock", "in_memory"]


@asynccontextmanager
async def in_memory(
    app: App, *, lifespan: Callable[[App], AbstractAsyncContextManager[Any]] | None = None
) -> AsyncGenerator[App]:
    """The app's handlers on an empty broker of their own, for one test.

    It is the embedded broker in a private temporary directory without fsync. Time stands still,
    and `run_until_idle` jumps to the next due retry, so that a test of retries takes no time.

    Args:
        app: Left as it is.
        lifespan: Instead of the app's own, to give handlers other resources.

    Raises:
        ConfigError: Two event types contradict each other.
    """
    options: dict[str, Any] = {} if lifespan is None else {"lifespan": lifespan}
    async with app.replace(url="embedded::memory:", clock=ManualClock(), **options) as private:
        yield private
