"""What other processes did: they ring when they have written, to whoever waits for that.

There are two bells, because most of what is written only makes topics grow, and that is looked up
fast; when owners, commands or pauses have changed, every group has to look. What this process
commits itself is told at once.

Who was not rung looks nevertheless: somebody may have been killed between a commit and its ring.
SQLite keeps a number that changes with every commit of another connection; reading it costs a few
microseconds. Where there can be no bell, it is read so often that nobody minds.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from eventlane.brokers.embedded.bell import Bell
from eventlane.brokers.embedded.file import File, storage_error
from eventlane.brokers.embedded.log import LogReader
from eventlane.errors import EventlaneError, Unavailable

__all__ = ["Watch", "Watcher"]

_log = logging.getLogger("eventlane.embedded")

_LOOK_S = 0.25
"""How often, at least, the file is looked at, and the owners of partitions that are waited for."""
_LOOK_UNRUNG_S = 0.05
"""How often the file is looked at without bells."""
_REST_S = 0.001
_REST_S_MAX = 0.02
"""Where several batches came at once, more will: the more they are, the longer the next ones are
gathered, since each look costs as much as many events. After one that came alone there is no rest.
"""


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


class _Bells:
    """The bells of a directory."""

    def __init__(self, directory: Path) -> None:
        self.appended = Bell(directory / "appended")
        self.altered = Bell(directory / "altered")
        self.all = (self.appended, self.altered)


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
        self._bells: _Bells | None = None
        self._has_warned = False
        self._listeners = 0
        self._look_s = _LOOK_UNRUNG_S
        self._timer: asyncio.TimerHandle | None = None
        self._version = log.data_version()
        self._others: int = -1
        """See `WriteLock.others`."""
        self._newest = log.last_id()
        self._owners_s = 0.0

    def use_bells(self) -> None:
        """Ring other processes, and be rung by them; without this it looks often."""
        try:
            self._bells = _Bells(self._file.directory / "bells")
        except OSError as error:
            self._warn(error)

    @contextmanager
    def listening(self) -> Generator[None]:
        """Look for changes in the meantime."""
        self._listeners += 1
        if self._timer is None:
            self._listen()
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

    def ring(self, topics: set[str], alters: bool) -> None:
        """Tell other processes what was written; in the writer's thread."""
        if self._bells is not None:
            if alters:
                self._bells.altered.ring()
            elif topics:
                self._bells.appended.ring()

    def tell(self, topics: set[str], alters: bool) -> None:
        """Something was written: topics have grown, or owners, commands or pauses changed."""
        self._try(lambda: self._tell(topics, alters))

    def close(self) -> None:
        """Look no more; who waits is told that the broker is closed."""
        self._fail(Unavailable(f"{self._file.path}: the broker is closed"))
        if self._timer is not None:
            self._timer.cancel()
        if self._bells is not None:
            for bell in self._bells.all:
                bell.close()
            self._bells = None

    def _listen(self) -> None:
        self._look_s, first_s = _LOOK_UNRUNG_S, _LOOK_UNRUNG_S
        if self._bells is not None:
            try:
                self._bells.appended.listen(self._hear_of_append)
                self._bells.altered.listen(self._hear_of_change)
            except OSError as error:
                self._hush()
                self._warn(error)
            else:
                # At once, for what was written before they could ring.
                self._look_s, first_s = _LOOK_S, 0.0
        self._timer = self._loop.call_later(first_s, self._look)

    def _hush(self) -> None:
        if self._bells is not None:
            for bell in self._bells.all:
                bell.hush()

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s: other processes cannot ring this one, so it looks every %g s for what they "
                "wrote (%s)",
                self._file.directory,
                _LOOK_UNRUNG_S,
                error,
            )

    def _look(self) -> None:
        self._timer = None
        if not self._listeners:
            self._hush()
            return
        try:
            self._try(self._look_at_all)
        finally:
            self._timer = self._loop.call_later(self._look_s, self._look)

    def _hear_of_append(self) -> float:
        before = self._newest
        self._try(self._look_at_log)
        return min(_REST_S_MAX, max(0, self._newest - before - 1) * _REST_S)

    def _hear_of_change(self) -> float:
        self._try(self._look_at_file)
        return 0.0

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
        except sqlite3.Error as error:
            self._fail(storage_error(error, self._file.path))
        except OSError:
            _log.exception("cannot look for what other processes did, trying again")

    def _look_at_all(self) -> None:
        self._look_at_file()
        now_s = self._loop.time()
        if now_s - self._owners_s >= _LOOK_S:
            self._owners_s = now_s
            for watcher in list(self.watchers):
                watcher.look_at_owners()

    def _look_at_file(self) -> None:
        version = self._log.data_version()
        if version != self._version:
            self._look_at_log()
            # What this process has written was told. To look for each group is dear: with 100
            # groups a process that publishes once a second would need 3 % of a core for it.
            others = self._file.lock.others()
            if others != self._others:
                self._tell(set(), alters=True)
            # Only now, so that a look that failed is repeated.
            self._version, self._others = version, others

    def _look_at_log(self) -> None:
        newest = self._log.last_id()
        if newest != self._newest:
            self._tell(self._log.topics_between(self._newest, newest), alters=False)
            self._newest = newest

    def _tell(self, topics: set[str], alters: bool) -> None:
        for topic in topics:
            for waiter in self._waiters.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)
        for watcher in list(self.watchers):
            for topic in topics:
                watcher.appended(topic)
            if alters:
                watcher.look()

    def _fail(self, error: EventlaneError) -> None:
        for watcher in list(self.watchers):
            watcher.fail(error)
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
