"""What a broker stands on: versions, the directory, its file system, the disk, room for sockets."""

import os
import shlex
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eventlane.brokers.embedded.bell import is_short
from eventlane.brokers.embedded.filesystem import mount_of
from eventlane.views import Finding
from eventlane.wording import size

__all__ = ["surroundings"]

_WAL_RESET_MENDED = (3, 51, 3)
"""See file.py."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_GB = 1_000_000_000
# Of the volume, and at most so much: a tenth of a large one is room enough.
_FREE_LOW = (0.1, 10 * _GB)
_FREE_OUT = (0.01, _GB)
_GOES_WITH_THE_MACHINE = ("tmpfs", "ramfs")
_GOES_WITH_THE_CONTAINER = ("overlay", "aufs")
_NAMED_MAX = 3


def surroundings(directory: Path) -> Iterator[Finding]:
    """Check what is around the file; it is not opened."""
    yield _software()
    yield from _permissions(directory)
    yield _file_system(directory)
    yield _disk(directory)
    yield _sockets(directory)


def _software() -> Finding:
    python = ".".join(map(str, sys.version_info[:3]))
    message = f"Python {python} and SQLite {sqlite3.sqlite_version} on {sys.platform}."
    if sqlite3.sqlite_version_info < _WAL_RESET_MENDED:
        message += (
            " This SQLite can lose commits where several programs checkpoint (before 3.51.3); "
            "Eventlane takes turns, which rules it out: let no other program write to the file."
        )
    return Finding(level="ok", check="versions", message=message)


def _permissions(directory: Path) -> Iterator[Finding]:
    files = {each: each.stat() for each in sorted(directory.iterdir()) if each.is_file()}
    database = directory / "eventlane.db"
    owner = files[database].st_uid
    found: list[Finding] = []

    def wrong(level: str, paths: Sequence[Path], message: str, *command: str) -> None:
        if paths:
            words = (*command, *map(str, paths))
            found.append(
                Finding(
                    level="error" if level == "error" else "warning",
                    check="permissions",
                    message=message.format(_named(paths)),
                    command=shlex.join(words) if command else None,
                )
            )

    def those(where: Callable[[Path, os.stat_result], bool]) -> list[Path]:
        return [path for path, status in files.items() if where(path, status)]

    wrong(
        "error",
        those(lambda path, _: not os.access(path, os.R_OK | os.W_OK)),
        f"{{}} cannot be read and written by this user (uid {os.getuid()}): run it as the one that "
        "the service runs as, or give it to that one.",
    )
    wrong(
        "error",
        those(lambda _, status: status.st_uid != owner),
        f"{{}} belongs to another user than eventlane.db (uid {owner}), whose processes may not be "
        "able to open it; it was made by a command of somebody else.",
        *("chown", str(owner)),
    )
    wrong(
        "warning",
        those(lambda _, status: bool(status.st_mode & _OTHERS)),
        "{} is open to other users, and has the payload of events.",
        *("chmod", "600"),
    )
    if directory.stat().st_mode & _OTHERS_WRITE:
        message = "{} can be written by other users: they could replace the file."
        wrong("warning", [directory], message, "chmod", "go-w")
    if not found:
        message = f"The files belong to uid {owner}, and to nobody else."
        found.append(Finding(level="ok", check="permissions", message=message))
    yield from found


def _named(paths: Sequence[Path]) -> str:
    more = len(paths) - _NAMED_MAX
    names = ", ".join(str(each) for each in paths[:_NAMED_MAX])
    return f"{names} (and {more} more)" if more > 0 else names


def _file_system(directory: Path) -> Finding:
    mount = mount_of(directory)
    if mount is None:
        return Finding(level="ok", check="file system", message="Its kind is not known here.")
    where = f"The directory is on {mount.kind} (mounted at {mount.place})"
    what: str | None = None
    if mount.is_network:
        what = "a network file system, where locks do not hold between machines: move it at once"
    elif mount.is_doubtful:
        what = (
            "where locks, mapped memory and fsync may not hold: never open it from another "
            "machine or from the host, and prefer a local disk"
        )
    elif mount.kind in _GOES_WITH_THE_MACHINE:
        what = "which is memory: all is lost when the machine restarts. Use a disk"
    elif mount.kind in _GOES_WITH_THE_CONTAINER:
        what = "the layer of a container, which goes when the container goes. Mount a volume"
    elif {"nobarrier", "barrier=0"} & set(mount.options.split(",")):
        what = (
            f"with {mount.options}, without write barriers: an fsync does not survive a power "
            "failure. Mount it without that option"
        )
    if what is None:
        return Finding(level="ok", check="file system", message=f"{where}.")
    return Finding(
        level="error" if mount.is_network else "warning",
        check="file system",
        message=f"{where}, {what}.",
    )


def _disk(directory: Path) -> Finding:
    usage = shutil.disk_usage(directory)

    def is_below(share: float, size_bytes: int) -> bool:
        return usage.free < min(share * usage.total, size_bytes)

    message = f"{size(usage.free)} of {size(usage.total)} are free."
    if is_below(*_FREE_OUT):
        message += " When it is full, publishing and settling fail, and nothing is lost: free some."
        return Finding(level="error", check="disk", message=message, command=f"df -h {directory}")
    if is_below(*_FREE_LOW):
        message += " Free some, or have Limits(disk_bytes_max=…) refuse publishing before."
        return Finding(level="warning", check="disk", message=message, command=f"df -h {directory}")
    return Finding(level="ok", check="disk", message=message)


def _sockets(directory: Path) -> Finding:
    if is_short(directory / "bells" / "appended"):
        message = "Processes wake each other by sockets in the directory."
        return Finding(level="ok", check="sockets", message=message)
    temporary = Path(tempfile.gettempdir())
    message = f"{directory.absolute()} is too long for the address of a socket"
    if is_short(temporary / "eventlane-12345678" / "d"):
        message += f"; processes wake each other by links in {temporary}."
        return Finding(level="ok", check="sockets", message=message)
    return Finding(
        level="warning",
        check="sockets",
        message=f"{message}, and so is {temporary}: processes look 20 times a second for what "
        "others wrote. Use a shorter directory, or a shorter TMPDIR.",
    )
