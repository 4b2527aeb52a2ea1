"""Who is alive: a file for each consumer, locked by the kernel and beaten by a thread.

A member keeps a lock on its file, which the kernel frees when its process ends, however it ends:
a free lock is a dead member. A lock that is held while the heartbeat in the file is older than the
lease is a frozen one. So a heartbeat is one small write to a file and none to the database.
(No boot id is needed to compare the times: no lock is held over a boot.)
"""

import fcntl
import logging
import math
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from eventlane.clock import SystemClock
from eventlane.errors import StorageError

__all__ = ["Heartbeat", "Member", "Members", "Seen"]

_log = logging.getLogger("eventlane.embedded")

_BEAT_S_MAX = 1.0
_FILE_BYTES = 4096
_BLOCKED_BYTES_MAX = 1500
_SCAN_S = 0.1
_NAME_CHARACTERS_MAX = 100
"""What does not fit its file could not be read back, and its member would be taken for dead."""


class Heartbeat(msgspec.Struct):
    """What a member's file says."""

    group: str
    pid: int
    host: str
    app: str
    beat_s: float
    """When it was written, by the host's monotonic clock, which all its processes share."""
    in_flight: int = 0
    held: int = 0
    is_leaving: bool = False
    """It drains, and takes no more partitions."""
    blocked: tuple[str, ...] = ()
    """Which partitions of its own are stopped or full, and why: in sentences."""


class Seen(NamedTuple):
    """A member's file as it lies there."""

    heartbeat: Heartbeat
    is_locked: bool
    """Else it is dead, or on another machine."""
    is_fresh: bool
    """Its heartbeat is no older than the lease."""
    written_ms: float
    """When it was written, by the wall clock of the file system."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Heartbeat).decode


class Member:
    """One consumer of this process."""

    def __init__(self, directory: Path, heartbeat: Heartbeat) -> None:
        self.id = uuid.uuid4().hex
        self.heartbeat = heartbeat
        self.is_abandoned = False
        """It stays a member until the process exits: see `Consumer.abandon`."""
        self.seen_s = heartbeat.beat_s
        """When its event loop turned last."""
        self._path = directory / self.id
        # Locked before it gets its name: who found it unlocked would take it for dead.
        unnamed = directory / f".{self.id}"
        self._file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        me = weakref.ref(self)

        def forget() -> None:
            if (member := me()) is not None:
                member.forget()

        os.register_at_fork(after_in_child=forget)
        self.beat(heartbeat.beat_s)
        unnamed.rename(self._path)

    def report(self, in_flight: int, held: int, blocked: Sequence[str]) -> None:
        """Say what its dispatcher is at; the next beat writes it."""
        heartbeat = self.heartbeat
        heartbeat.in_flight, heartbeat.held = in_flight, held
        heartbeat.blocked = _as_many_as_fit(blocked) if blocked else ()
        self.seen_s = SystemClock.monotonic_s()

    def drain(self) -> None:
        """Say that it is about to leave."""
        self.heartbeat.is_leaving = True
        self.beat(SystemClock.monotonic_s())

    def beat(self, now_s: float) -> None:
        """Write a sign of life."""
        self.heartbeat.beat_s = now_s
        # Padded to one size, so that a shorter text leaves nothing of a longer one behind.
        text = _encode(self.heartbeat) + b"\n"
        os.pwrite(self._file, text.ljust(_FILE_BYTES), 0)

    def forget(self) -> None:
        """In a forked child: it would keep the lock alive when its parent is killed."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def end(self) -> None:
        """Be dead for everybody."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


class Members:
    """All members of a directory, and the thread that beats for those of this process."""

    def __init__(self, directory: Path, *, lease_s: float, stall_s_max: float) -> None:
        self._directory = directory / "members"
        self._lease_s = lease_s
        self._stall_s_max = stall_s_max
        self._own: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._scanned: dict[str, frozenset[tuple[str, bool]]] = {}
        """By group; see `living`."""
        self._scanned_s = -math.inf
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, *, group: str, host: str, app: str) -> Member:
        """Become a member.

        Raises:
            StorageError: Its file cannot be written.
        """
        heartbeat = Heartbeat(
            group,
            os.getpid(),
            host[:_NAME_CHARACTERS_MAX],
            app[:_NAME_CHARACTERS_MAX],
            SystemClock.monotonic_s(),
        )
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            member = Member(self._directory, heartbeat)
        except OSError as error:
            raise StorageError(
                f"{self._directory}: expected a directory that can be written to, got "
                f"{error.strerror or error}"
            ) from error
        with self._lock:
            self._own[member.id] = member
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._beat, name="eventlane-heartbeat", daemon=True
            )
            self._thread.start()
        return member

    def leave(self, member: Member) -> None:
        """Give up a membership. Safe to call twice."""
        with self._lock:
            if self._own.pop(member.id, None) is not None:
                member.end()

    def close(self) -> None:
        """Give up all memberships."""
        for member in list(self._own.values()):
            if not member.is_abandoned:
                self.leave(member)
        if self._own:
            return  # The thread goes on beating for what is owned until the process exits.
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def heartbeat(self, id: str) -> Heartbeat | None:
        """The last sign of life of a member; None if it is dead or frozen."""
        own = self._own.get(id)
        if own is not None:
            return own.heartbeat
        try:
            file = os.open(self._directory / id, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            # Shared, so that two who look at a dead member do not take each other for it.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            heartbeat = _read(file)
            is_fresh = SystemClock.monotonic_s() - heartbeat.beat_s <= self._lease_s
            return heartbeat if is_fresh else None
        finally:
            os.close(file)
        return None

    def seen(self) -> list[Seen]:
        """The files of all members, the dead and the frozen too."""
        found: list[Seen] = []
        for path in map(self._directory.joinpath, self._names()):
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                is_locked = False
            except BlockingIOError:
                is_locked = True
            finally:
                heartbeat, written_ms = _read(file), os.fstat(file).st_mtime * 1000
                os.close(file)
            is_fresh = SystemClock.monotonic_s() - heartbeat.beat_s <= self._lease_s
            found.append(Seen(heartbeat, is_locked, is_fresh, written_ms))
        return found

    def is_alive(self, id: str) -> bool:
        """Whether a member lives; a frozen one does not."""
        return self.heartbeat(id) is not None

    def app_of(self, id: str) -> str | None:
        """The app of a member; None if it does not live."""
        heartbeat = self.heartbeat(id)
        return None if heartbeat is None else heartbeat.app

    def is_taking(self, id: str) -> bool:
        """Whether a member lives and is not about to leave."""
        heartbeat = self.heartbeat(id)
        return heartbeat is not None and not heartbeat.is_leaving

    def living(self, group: str) -> frozenset[tuple[str, bool]]:
        """The ids of all members of a group that live, each with whether it is about to leave.

        Seen at most `_SCAN_S` ago: each group of a process asks for them again and again.
        """
        now_s = SystemClock.monotonic_s()
        if now_s - self._scanned_s > _SCAN_S:
            found: dict[str, set[tuple[str, bool]]] = {}
            for name in self._names():
                beat = self.heartbeat(name)
                if beat is not None:
                    found.setdefault(beat.group, set()).add((name, beat.is_leaving))
            self._scanned_s = now_s
            self._scanned = {each: frozenset(members) for each, members in found.items()}
        return self._scanned.get(group, frozenset())

    def alive(self, *, but: str | None = None) -> list[Heartbeat]:
        """All live members of all processes, but for one of them."""
        beats = [self.heartbeat(name) for name in self._names() if name != but]
        return [heartbeat for heartbeat in beats if heartbeat is not None]

    def sweep(self) -> None:
        """Remove what dead members have left; the file of a frozen one stays."""
        for path in map(self._directory.joinpath, self._names()):
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                path.unlink(missing_ok=True)
            finally:
                os.close(file)

    def _names(self) -> list[str]:
        """The files of all members; those that begin with a dot are not locked yet."""
        try:
            names = os.listdir(self._directory)  # noqa: PTH208  # a Path costs more than a look
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".")]

    def _beat(self) -> None:
        interval_s = min(self._lease_s / 5, _BEAT_S_MAX)
        while not self._stop.wait(interval_s):
            now_s = SystemClock.monotonic_s()
            with self._lock:
                for member in self._own.values():
                    if member.is_abandoned or now_s - member.seen_s <= self._stall_s_max:
                        self._beat_once(member, now_s)

    def _beat_once(self, member: Member, now_s: float) -> None:
        try:
            member.beat(now_s)
        except OSError:
            # The next beat tries again; if none gets through, the lease ends as it should.
            _log.exception("group %s: the heartbeat failed", member.heartbeat.group)


def _as_many_as_fit(sentences: Sequence[str]) -> tuple[str, ...]:
    """The first ones, as many as a member's file has room for, and how many there are beyond."""
    size_bytes = 0
    for count, sentence in enumerate(sentences):
        size_bytes += len(_encode(sentence))
        if size_bytes > _BLOCKED_BYTES_MAX:
            return (*sentences[:count], f"and {len(sentences) - count} more")
    return tuple(sentences)


def _read(file: int) -> Heartbeat:
    """What a member wrote last; it may be writing just now, so that one look is not enough."""
    for _ in range(3):
        try:
            return _decode(os.pread(file, _FILE_BYTES, 0).partition(b"\n")[0])
        except msgspec.DecodeError:
            continue
    return Heartbeat("", 0, "", "", -math.inf)
