"""Two versions of an app beside each other, while its workers are restarted one after the other."""

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from eventlane import App, GroupStatus
from tests.crash.rolled import GROUP, Paid, Placed, Shipped, made_app
from tests.crash.test_workers import PATIENCE_S, Service

KEYS = tuple(f"k{number}" for number in range(12))
WORKERS = 3


class Publisher:
    """Publishes an event of each key each time it is asked, of all types that it may use."""

    def __init__(self, app: App) -> None:
        self.types: dict[str, type[Any]] = {"Placed": Placed, "Paid": Paid}
        self.published: Counter[str] = Counter()
        self._app = app
        self._numbers = itertools.count()
        self._futures: list[Future[Any]] = []

    def __call__(self) -> None:
        number = next(self._numbers)
        kinds = list(self.types)
        for place, key in enumerate(KEYS):
            kind = kinds[(number + place) % len(kinds)]
            self.published[kind] += 1
            self._futures.append(self._app.submit(self.types[kind](key, number)))

    def wait(self) -> None:
        for future in self._futures:
            future.result(PATIENCE_S)


def test_a_type_that_only_the_next_version_handles_waits_for_it_in_order(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("1")
    with (
        Service(tmp_path, "--workers", str(WORKERS), app="tests.crash.rolled:app") as service,
        made_app(tmp_path, "2") as app,
    ):
        publisher = Publisher(app)

        def publishing(enough: Callable[[], object]) -> Callable[[], object]:
            def publish_and_look() -> object:
                publisher()
                return enough()

            return publish_and_look

        service.until(lambda: len(service.ready_pids) == WORKERS, "the first version")
        publisher()
        publisher.wait()  # What is in flight while its topic is made has no order.
        service.until(publishing(lambda: len(service.said) > 100), "the first version to work")
        (tmp_path / "version").write_text("2")
        service.send(signal.SIGHUP)
        ready = WORKERS + 1
        service.until(publishing(lambda: len(service.ready_pids) == ready), "the second version")
        publisher.types["Shipped"] = Shipped
        service.until(
            publishing(lambda: "all workers were restarted" in service.log), "the restart to end"
        )
        during = publisher.published["Shipped"]
        publisher.wait()
        published = publisher.published.total()
        service.until(lambda: len(service.said) >= published, "all to be handled")
        service.send(signal.SIGTERM)
        assert service.wait() == 0, service.log
        account = asyncio.run(account_of(tmp_path))

    assert during > len(KEYS)
    assert "since it has no handler for Shipped" in service.log  # the first version met some
    assert (account.done, account.skipped, account.open) == (published, 0, 0), account
    handled = list(runs(service))
    # All of them drained, so that none was handled twice, and those of a key came one by one.
    for key in KEYS:
        numbers = [number for _, _, of, number in handled if of == key]
        assert numbers == list(range(published // len(KEYS)))
    by = Counter((version, kind) for version, kind, _, _ in handled)
    assert by["2", "Shipped"] == publisher.published["Shipped"]
    assert by["1", "Placed"]
    assert by["2", "Placed"]


def runs(service: Service) -> Iterator[tuple[str, str, str, int]]:
    """Version, type, key and number of each run, in the order in which they were."""
    for what, number, _ in service.said:
        version, kind, key = what.split(":")
        yield version, kind, key, number


async def account_of(place: Path) -> GroupStatus:
    async with made_app(place, "2") as app:
        return (await app.status()).groups[GROUP]
