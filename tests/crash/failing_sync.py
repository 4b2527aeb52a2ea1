"""A disk that takes what is written and then fails to make it durable: `fsync` raises EIO.

The kernel is told to refuse it (a seccomp filter), for one thread: what is to fail runs in a thread
of its own. So nothing is to be compiled, and the rest of the process has a sound disk. SQLite then
has written a whole transaction to its write-ahead log, and says that it failed. As long as its
process lives, the next transaction is written over it; if the process dies before, whoever opens
the file next finds it there.
"""

import ctypes
import errno
import os
import platform
import signal
import sqlite3
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_CALLS = {"x86_64": (0xC000003E, 74, 75), "aarch64": (0xC00000B7, 82, 83)}
"""By machine: its name in a filter, and the numbers of `fsync` and `fdatasync`."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_MACHINE_AT, _NUMBER_AT = 4, 0
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000 | errno.EIO


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def _fail_from_now_on() -> None:
    """Let every fsync of this thread fail, for as long as it lives."""
    machine, fsync, fdatasync = _CALLS[platform.machine()]
    steps = (
        (_LOAD, 0, 0, _MACHINE_AT),
        (_EQUAL, 0, 4, machine),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 1, 0, fsync),
        (_EQUAL, 0, 1, fdatasync),
        (_RETURN, 0, 0, _FAIL),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.byref(_Program(len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(_SET_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def without_sync(do: Callable[[], T]) -> T:
    """Do something while no fsync succeeds.

    Raises:
        BaseException: What it raises.
        OSError: The kernel cannot be told.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _fail_from_now_on()
            done.append(do())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def why_not() -> str | None:
    """Why an fsync cannot be made to fail here; None if it can."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return f"known of Linux on {' and '.join(_CALLS)} only"
    with tempfile.TemporaryFile() as file:
        try:
            without_sync(lambda: os.fsync(file.fileno()))
        except OSError as error:
            return None if error.errno == errno.EIO else str(error)
    return "the kernel has taken a filter, and fsync succeeds"


@dataclass(slots=True)
class Syncs:
    """Counts what makes SQLite sync, and fails at some of it."""

    fails_at: int = 0
    """Its number, from 1 on; 0: none."""
    count: int = 1
    """How many fail, one after the other."""
    lives_for: int | None = None
    """How many more there may be, the failing ones included, before the process is killed; None: it
    lives on."""
    so_far: int = 0

    def run(self, do: Callable[[], T]) -> T:
        """Do what syncs, or fails to."""
        self.so_far += 1
        after = self.so_far - self.fails_at
        if not self.fails_at or after < 0:
            return do()
        if self.lives_for is not None and after >= self.lives_for:
            os.kill(os.getpid(), signal.SIGKILL)
        if after >= self.count:
            return do()
        try:
            return without_sync(do)
        finally:
            if self.lives_for == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:  # for good: it is a process of its own
        """Let all connections that are opened from now on sync here."""
        syncs = self

        class Connection(sqlite3.Connection):
            reads_only = False

            def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
                execute = super().execute
                self.reads_only = self.reads_only or "query_only" in statement
                if not self.reads_only and statement.startswith(("COMMIT", "PRAGMA journal_mode")):
                    return syncs.run(lambda: execute(statement, *arguments))
                return execute(statement, *arguments)

            def executescript(self, script: str) -> sqlite3.Cursor:
                execute = super().executescript
                return syncs.run(lambda: execute(script))

            def close(self) -> None:
                close = super().close
                if self.reads_only:
                    close()
                else:
                    syncs.run(close)

        connect = sqlite3.connect
        setattr(
            sqlite3, "connect", lambda *given, **more: connect(*given, factory=Connection, **more)
        )
