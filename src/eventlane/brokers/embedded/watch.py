"""What other processes did: looked for while somebody waits, and only then.

SQLite keeps a number that changes with every commit of another connection; reading it costs a few
microseconds, so it is read every `_LOOK_S`. What this process commits itself is told at once.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from eventlane.brokers.embedded.file import File, storage_error
from eventlane.brokers.embedded.log import LogReader
from eventlane.errors import EventlaneError, Unavailable

__all__ = ["Watch", "Watcher"]

_log = logging.getLogger("eventlane.embedded")

_LOOK_S = 0.05
_OWNERS_S = 0.25
"""How often the owners of partitions that this process waits for are looked at."""


class Watcher(Protocol):
    """Somebody who wants to know."""

    def appended(self, topic: str) -> None:
        """A topic may have grown."""
        ...

    def look(self) -> None:
        """Owners, commands or pauses may have changed."""
        ...

    def look_at_owners(self) -> None:
        """An owner may have died."""
        ...

    def fail(self, error: EventlaneError) -> None:
        """The file cannot be read, or is closed."""
        ...


class Watch:
    """Looks for changes on behalf of all watchers of a broker."""

    def __init__(self, file: File, log: LogReader) -> None:
        self.watchers: dict[Watcher, None] = {}
        """In the order in which they came."""
        self._file = file
        self._log = log
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        """Who waits for a topic to grow."""
        self._loop = asyncio.get_running_loop()
        self._listeners = 0
        self._timer: asyncio.TimerHandle | None = None
        self._version = log.data_version()
        self._newest = log.last_id()
        self._owners_s = 0.0

    @contextmanager
    def listening(self) -> Generator[None]:
        """Look for changes in the meantime."""
        self._listeners += 1
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
        try:
            yield
        finally:
            self._listeners -= 1

    async def wait_for_append(self, topic: str) -> None:
        """See `Broker.wait_for_append`."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiters = self._waiters.setdefault(topic, [])
        waiters.append(waiter)
        with self._file.reading(), self.listening():
            try:
                await waiter
            finally:
                if waiter in waiters:
                    waiters.remove(waiter)

    def tell(self, topics: set[str], alters: bool) -> None:
        """Something was written: topics have grown, or owners, commands or pauses changed."""
        for topic in topics:
            for waiter in self._waiters.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)
        try:
            for watcher in list(self.watchers):
                for topic in topics:
                    watcher.appended(topic)
                if alters:
                    watcher.look()
        except sqlite3.Error as error:
            self._fail(storage_error(error, self._file.path))
        except OSError:
            _log.exception("cannot look for what other processes did, trying again")

    def close(self) -> None:
        """Look no more; who waits is told that the broker is closed."""
        self._fail(Unavailable(f"{self._file.path}: the broker is closed"))
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._listeners:
            return
        try:
            self._look_at_file()
        except sqlite3.Error as error:
            self._fail(storage_error(error, self._file.path))
        except OSError:
            _log.exception("cannot look for what other processes did, trying again")
        finally:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _look_at_file(self) -> None:
        version = self._log.data_version()
        if version != self._version:
            newest = self._log.last_id()
            self.tell(self._log.topics_between(self._newest, newest), alters=True)
            # Only now, so that a look that failed is repeated.
            self._version, self._newest = version, newest
        now_s = self._loop.time()
        if now_s - self._owners_s >= _OWNERS_S:
            self._owners_s = now_s
            for watcher in list(self.watchers):
                watcher.look_at_owners()

    def _fail(self, error: EventlaneError) -> None:
        for watcher in list(self.watchers):
            watcher.fail(error)
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
