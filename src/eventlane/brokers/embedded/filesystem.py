"""Which file system a directory is on: the file's locks and shared memory need a local one.

SQLite's write-ahead log is shared between processes through mapped memory, which two machines never
share, and `flock` is kept to one machine, ignored, or lost by many network file systems. So two
processes could write at once, and the file would be damaged.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from eventlane.errors import ConfigError

__all__ = ["Mount", "check_file_system", "mount_of"]

_log = logging.getLogger("eventlane.embedded")

_MOUNTS = Path("/proc/mounts")
"""What is mounted where, on Linux; there is none on macOS, where nothing is checked."""

_NETWORK = frozenset(
    (
        *("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "auristorfs"),
        *("ceph", "lustre", "glusterfs", "ncpfs", "davfs", "coda", "gpfs", "beegfs", "gfs2"),
        *("ocfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"),
        *("fuse.gcsfuse", "fuse.mount-s3", "fuse.davfs2", "fuse.smbnetfs", "fuse.juicefs"),
        *("fuse.efs-utils", "fuse.blobfuse2", "fuse.curlftpfs", "fuse.moosefs", "fuse.seaweedfs"),
    )
)
_DOUBTFUL = frozenset(("9p", "virtiofs", "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs"))
"""What the host of a virtual machine shares with it."""
_LOCAL_FUSE = frozenset(("fuse.ntfs-3g", "fuse.fuse-overlayfs", "fuseblk"))


class Mount(NamedTuple):
    """A file system, and where it is mounted."""

    place: str
    kind: str
    options: str

    @property
    def is_network(self) -> bool:
        """Several machines may use it, and its locks do not hold between them."""
        return self.kind in _NETWORK

    @property
    def is_doubtful(self) -> bool:
        """It may be one."""
        is_fuse = self.kind.startswith("fuse.") and self.kind not in _LOCAL_FUSE
        return self.kind in _DOUBTFUL or (is_fuse and not self.is_network)


def check_file_system(directory: Path) -> None:
    """Refuse a directory on a network file system, and warn where it may be one.

    Raises:
        ConfigError: It is on one; nothing was made.
    """
    mount = mount_of(directory)
    if mount is None:
        return
    if mount.is_network:
        raise ConfigError(
            f"{directory}: expected a local file system, got {mount.kind} (mounted at "
            f"{mount.place}). "
            "Over a network the locks and the shared memory of the file do not hold: processes on "
            "two machines could write at once, and damage it. Use a local disk or a block device."
        )
    if mount.is_doubtful:
        _log.warning(
            "%s: is on %s (mounted at %s), where locks, mapped memory and fsync may not hold: "
            "never open it from another machine or from the host, and prefer a local disk",
            directory,
            mount.kind,
            mount.place,
        )


def mount_of(directory: Path) -> Mount | None:
    """The file system of a directory; None where there is no table of what is mounted."""
    try:
        table = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    return _mount_of(directory.resolve(), table)


def _mount_of(path: Path, table: str) -> Mount:
    """Of two at one place the later one."""
    found = Mount("", "", "")
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        if len(place) >= len(found.place) and path.is_relative_to(place):
            found = Mount(place, fields[2], fields[3])
    return found
