"""The lock on which the writers of all processes queue.

An advisory lock (`flock`) on a file of its own, because SQLite's own busy handler sleeps in steps of
up to 100 ms, serves nobody in turn, and does not know who holds it. A kernel lock that is waited for
cannot time out, so it is polled; and because a writer that commits all the time would be back before
the others look again, there are two: who waits for the lock holds the **turn**, and who wants
to come back has to wait for the turn first.
"""

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType

from eventlane.clock import SystemClock
from eventlane.errors import StorageError

__all__ = ["WriteLock"]

_HOLDER_BYTES = 40


class _Lock:
    """One lock file; it says who holds it."""

    def __init__(self, path: Path, *, pause_s: float, pause_s_max: float) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._pause_s = pause_s
        self._pause_s_max = pause_s_max
        self._pause = threading.Event()
        self._times = 0

    def acquire(self, lease_s: float) -> None:
        if not self._try():
            self._poll(lease_s)
        self._times += 1
        holder = f"{os.getpid()} {self._times}\n"
        os.pwrite(self._file, holder.ljust(_HOLDER_BYTES).encode(), 0)

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _poll(self, lease_s: float) -> None:
        holder, pause_s = self._holder(), self._pause_s
        until_s = SystemClock.monotonic_s() + lease_s
        while not self._try():
            self._pause.wait(pause_s)
            pause_s = min(pause_s * 1.5, self._pause_s_max)
            if SystemClock.monotonic_s() > until_s:
                now = self._holder()
                if now == holder:
                    raise StorageError(
                        f"{self._path}: process {holder.partition(' ')[0]} has held the lock for "
                        f"{lease_s:g} s; if it hangs, end it. Nothing was written"
                    )
                holder, until_s = now, SystemClock.monotonic_s() + lease_s

    def _holder(self) -> str:
        """The process that holds it, and how many times it has."""
        return os.pread(self._file, _HOLDER_BYTES, 0).decode("ascii", "replace").strip()


class WriteLock:
    """The right to write to the file, for one thread of one process at a time."""

    def __init__(self, directory: Path, lease_s: float) -> None:
        """Open the lock files.

        Raises:
            OSError: They cannot be opened.
        """
        self._lease_s = lease_s
        # One process at a time looks often, for the lock; the others have time, for the turn.
        self._turn = _Lock(directory / "eventlane.turn", pause_s=0.0005, pause_s_max=0.002)
        self._lock = _Lock(directory / "eventlane.lock", pause_s=0.00005, pause_s_max=0.0002)
        self._between_threads = threading.Lock()

    def __enter__(self) -> None:
        """Wait for it.

        Raises:
            StorageError: Another process has held it for `lease_s`; the message says which.
        """
        self._between_threads.acquire()
        try:
            self._turn.acquire(self._lease_s)
            try:
                self._lock.acquire(self._lease_s)
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

    def close(self) -> None:
        """Give the files back."""
        self._turn.close()
        self._lock.close()
