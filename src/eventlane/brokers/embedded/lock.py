"""The lock on which the writers of all processes queue.

An advisory lock (`flock`) on a file of its own, because SQLite's own busy handler sleeps in steps
of up to 100 ms, serves nobody in turn, and does not know who holds it. A kernel lock that is waited
for cannot time out, so it is polled; and because a writer that commits all the time would be back
before the others look again, there are two: who waits for the lock holds the **turn**, and who
wants to come back has to wait for the turn first.
"""

import fcntl
import mmap
import os
import threading
import weakref
from pathlib import Path
from types import TracebackType

from eventlane.clock import SystemClock
from eventlane.errors import StorageError

__all__ = ["WriteLock"]

_HOLDER_BYTES = 40
# One process at a time waits for the lock, so it may look often; the others have time.
_LOCK_PAUSES_S = (0.00005, 0.0002)
_TURN_PAUSES_S = (0.0005, 0.002)


class _Lock:
    """One lock file; it says who had it last.

    It says so through a mapping: a write would make the file part of the file system's journal and
    so of each fsync of the database. (Measured on ext4: 2,760 commits a second, 1,130 with writes.)
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, _HOLDER_BYTES)
        self._said = mmap.mmap(self._file, _HOLDER_BYTES)
        self._own = f"{os.getpid()} {os.urandom(4).hex()}"
        self._times = 0
        self._said_last = b""
        self._others = 0
        self._counting = threading.Lock()

    def take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with self._counting:
            self._count_others()
            self._times += 1
            self._said_last = f"{self._own} {self._times}\n".ljust(_HOLDER_BYTES).encode()
            self._said[:] = self._said_last
        return True

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def holder(self) -> str:
        """The process that had it last, and how many times it has had it."""
        return self._said[:].decode("ascii", "replace").strip("\0\n ")

    def others(self) -> int:
        """See `WriteLock.others`."""
        with self._counting:
            self._count_others()
            return self._others

    def _count_others(self) -> None:
        if self._said[:] != self._said_last:
            self._others += 1

    def close(self) -> None:
        self._said.close()  # It has a descriptor of its own, which would keep the lock as well.
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class WriteLock:
    """The right to write to the file, for one thread of one process at a time."""

    def __init__(self, directory: Path, lease_s: float) -> None:
        """Open the lock files.

        Raises:
            OSError: They cannot be opened.
        """
        self._path = directory / "eventlane.lock"
        self._lease_s = lease_s
        self._lock = _Lock(self._path)
        self._turn = _Lock(directory / "eventlane.turn")
        self._between_threads = threading.Lock()
        self._pause = threading.Event()
        # A forked child shares the locks, and would hold them when its parent is killed.
        me = weakref.ref(self)

        def let_go() -> None:
            if (lock := me()) is not None:
                lock.close()

        os.register_at_fork(after_in_child=let_go)

    def __enter__(self) -> None:
        """Wait for it.

        Raises:
            StorageError: One process has had it for `lease_s`; the message says which.
        """
        self._between_threads.acquire()
        try:
            self._take(self._turn, *_TURN_PAUSES_S)
            try:
                self._take(self._lock, *_LOCK_PAUSES_S)
            finally:
                self._turn.release()
        except BaseException:
            self._between_threads.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
        self._between_threads.release()

    def others(self) -> int:
        """A number that is another one whenever somebody else may have written since it was asked.

        While another one had it last it is a new one each time: that one may be writing still.
        """
        return self._lock.others()

    def close(self) -> None:
        """Give the files back."""
        self._turn.close()
        self._lock.close()

    def _take(self, wanted: _Lock, pause_s: float, pause_s_max: float) -> None:
        if wanted.take():
            return
        holder = self._lock.holder()
        until_s = SystemClock.monotonic_s() + self._lease_s
        while not wanted.take():
            self._pause.wait(pause_s)
            pause_s = min(pause_s * 1.5, pause_s_max)
            if SystemClock.monotonic_s() > until_s:
                if self._lock.holder() == holder:
                    raise self._stuck()
                holder = self._lock.holder()
                until_s = SystemClock.monotonic_s() + self._lease_s

    def _stuck(self) -> StorageError:
        culprit = self._lock.holder()
        if self._lock.take():  # Free: then it is the turn that somebody does not give back.
            self._lock.release()
            culprit = self._turn.holder()
        return StorageError(
            f"{self._path}: process {culprit.partition(' ')[0]} has held the lock for "
            f"{self._lease_s:g} s; if it hangs, end it. Nothing was written"
        )
