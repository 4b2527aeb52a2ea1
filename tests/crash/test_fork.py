"""A forked child, as a pool of processes makes it, must not keep what its parent held."""

import subprocess
import sys
from pathlib import Path

from eventlane.brokers.embedded.lock import WriteLock
from eventlane.brokers.embedded.members import Members

PARENT = """
import os, sys
from pathlib import Path
from eventlane.brokers.embedded.lock import WriteLock
from eventlane.brokers.embedded.members import Members
directory = Path(sys.argv[1])
member = Members(directory, lease_s=60, stall_s_max=30).join(group="g", host="h", app="a")
with WriteLock(directory, lease_s=1):
    child = os.fork()
    if child == 0:
        sys.stdin.read()  # lives until the test ends it
        os._exit(0)
    print(member.id, flush=True)
    os._exit(1)  # as kill -9 does, within a commit
"""


def test_a_forked_child_keeps_neither_the_write_lock_nor_the_membership_of_its_parent(
    tmp_path: Path,
) -> None:
    (tmp_path / "members").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        member = parent.stdout.readline().strip()
        parent.wait()
        with WriteLock(tmp_path, lease_s=1):
            pass
        assert not Members(tmp_path, lease_s=60, stall_s_max=30).is_alive(member)
