"""Wakes the other processes that use a file, so that they need not look at it all the time.

Who listens binds a Unix datagram socket to a name of its own in the bell's directory; who rings
sends a byte to each name there. It never waits: a socket that takes no more has a ring that was not
heard yet, and whoever hears it looks at what was written before and since. What is sent means
nothing, so that whoever can send can make others look, and no more.

The sockets lie in the data directory, since whoever shares the data then shares them too: of
containers with one volume each has a `/tmp` of its own, and abstract names exist on Linux alone,
and not across network namespaces. An address has room for some hundred bytes. A directory with a
longer path is reached by a symbolic link with a short one, of which nobody else has to know.
"""

import asyncio
import errno
import logging
import os
import socket
import tempfile
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from eventlane.clock import SystemClock

__all__ = ["Bell", "is_short"]

_log = logging.getLogger("eventlane.embedded")

_ADDRESS_BYTES_MAX = 103
"""Of macOS; Linux has room for four more."""
_NAME_CHARACTERS = 12
_DRAINED_MAX = 64
_LIST_S = 1.0
"""How long a list of who listens is good; a directory's time of change may be coarse."""


class Bell:
    """One bell: everybody who listens hears it, but for the one who rings.

    It is rung in one thread, all else is done in the one of the event loop.
    """

    def __init__(self, directory: Path) -> None:
        """Nothing is made in the directory before somebody listens.

        Raises:
            OSError: Its path is too long for a socket, and no link to it can be made.
        """
        self._directory = directory
        self._link: Path | None = None
        self._where = directory
        """As its addresses have it."""
        if not is_short(directory):
            # Not one for all processes, which somebody else could have made before.
            self._link = Path(tempfile.mkdtemp(prefix="eventlane-")) / "d"
            self._where = self._link
            self._link.symlink_to(directory, target_is_directory=True)
        self._name = ""
        self._socket: socket.socket | None = None
        """Who listens has it."""
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._sender: socket.socket | None = None
        self._others: list[str] = []
        """The names of those who listen."""
        self._changed_ns = -1
        self._listed_s = 0.0
        self._has_warned = False
        me = weakref.ref(self)

        def forget() -> None:
            if (bell := me()) is not None:
                bell.forget()

        os.register_at_fork(after_in_child=forget)

    def listen(self, heard: Callable[[], float]) -> None:
        """Call back in the event loop whenever another process has rung.

        Args:
            heard: gives the seconds in which it wants to hear nothing; a ring then comes later.

        Raises:
            OSError: There can be no socket here.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._name = uuid.uuid4().hex[:_NAME_CHARACTERS]
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.bind(str(self._where / self._name))
            (self._directory / self._name).chmod(0o600)
        except OSError:
            bound.close()
            raise

        def hear() -> None:
            try:
                for _ in range(_DRAINED_MAX):
                    bound.recv(1)
            except BlockingIOError:
                pass
            rest_s = heard()
            if rest_s and self._socket is bound:
                self._loop.remove_reader(bound)
                self._rest = self._loop.call_later(rest_s, self._loop.add_reader, bound, hear)

        self._loop.add_reader(bound, hear)
        self._socket = bound

    def hush(self) -> None:
        """Listen no more. Safe to call twice."""
        bound, self._socket = self._socket, None
        if bound is not None:
            if self._rest is not None:
                self._rest.cancel()
            self._loop.remove_reader(bound)
            bound.close()
            with suppress(OSError):  # Whoever rings next sweeps it.
                (self._directory / self._name).unlink()

    def ring(self) -> None:
        """Wake the others. Who cannot be rung will look by himself, sooner or later."""
        try:
            self._list()
        except FileNotFoundError:
            return  # Nobody has ever listened.
        except OSError as error:
            self._warn(error)
            return
        for name in self._others:
            try:
                self._ring_one(name)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # macOS's word for a socket that takes no more
                    self._warn(error)

    def close(self) -> None:
        """Give everything back; it is not rung any more. Safe to call twice."""
        self.hush()
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.parent.rmdir()
            self._link = None

    def forget(self) -> None:
        """In a forked child: it would keep the socket when its parent is killed."""
        if self._socket is not None:
            # The event loop's selector is its parent's too: nothing may be taken out of it.
            self._socket.close()
            self._socket = None
        self._link = None

    def _list(self) -> None:
        """See who listens, unless that is known."""
        changed_ns = self._directory.stat().st_mtime_ns
        now_s = SystemClock.monotonic_s()
        if changed_ns != self._changed_ns or now_s - self._listed_s > _LIST_S:
            names = [path.name for path in self._directory.iterdir()]
            self._others = [name for name in names if name != self._name]
            self._changed_ns, self._listed_s = changed_ns, now_s

    def _ring_one(self, name: str) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        try:
            self._sender.sendto(b"!", str(self._where / name))
        except (BlockingIOError, FileNotFoundError):
            pass  # It has not heard an earlier ring yet, or listens no more.
        except ConnectionRefusedError:
            # Killed. Names are used once, so that nobody who lives is meant by this one.
            (self._directory / name).unlink(missing_ok=True)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s: another process cannot be rung; it will look by itself, some times a second "
                "(%s)",
                self._directory,
                error,
            )


def is_short(directory: Path) -> bool:
    """Whether sockets in it can have its path in their addresses."""
    return len(os.fsencode(directory)) + 1 + _NAME_CHARACTERS <= _ADDRESS_BYTES_MAX
