"""Whether what a long run needs stays level: memory of processes, sizes of files."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eventlane.brokers.embedded.file import File

MEGABYTE = 1 << 20
GROWTH_MAX = 1.2


@dataclass
class Level:
    """What was measured of one thing, over time."""

    name: str
    allowance_bytes: int
    """What it may grow by besides: a short run measures little more than chance."""
    samples: list[tuple[float, int]] = field(default_factory=list)

    def note(self, at_s: float, size_bytes: int) -> None:
        self.samples.append((at_s, size_bytes))

    def thirds(self, duration_s: float) -> tuple[int, int, int]:
        """The maximum of each third."""
        found = [0, 0, 0]
        for at_s, size_bytes in self.samples:
            third = min(2, int(3 * at_s / duration_s))
            found[third] = max(found[third], size_bytes)
        return found[0], found[1], found[2]

    def allowed_bytes(self, duration_s: float) -> int:
        return int(GROWTH_MAX * self.thirds(duration_s)[1]) + self.allowance_bytes

    def is_flat(self, duration_s: float) -> bool:
        """The last third is no greater than the one before; the first is for warming up."""
        _, middle, last = self.thirds(duration_s)
        return middle > 0 and 0 < last <= self.allowed_bytes(duration_s)


def table_of(levels: Iterable[Level], duration_s: float) -> str:
    """All of them by thirds, in megabytes."""
    lines = [f"{'largest, in MB, by thirds':<44} first middle   last  allowed"]
    for level in levels:
        sizes = "".join(f"{each / MEGABYTE:7.1f}" for each in level.thirds(duration_s))
        allowed = f"{level.allowed_bytes(duration_s) / MEGABYTE:9.1f}"
        verdict = "flat" if level.is_flat(duration_s) else "GROWS"
        lines.append(f"{level.name:<42}{sizes}{allowed}  {verdict}")
    return "\n".join(lines)


def resident_bytes(pids: Iterable[int]) -> Mapping[int, int]:
    """The memory of processes; one that has ended has none."""
    wanted = ",".join(map(str, pids))
    told = subprocess.run(
        ["ps", "-o", "pid=,rss=", "-p", wanted], capture_output=True, text=True, check=False
    )
    found = (map(int, line.split()) for line in told.stdout.splitlines())
    return {pid: kilobytes << 10 for pid, kilobytes in found}


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


_FOREVER = ("letter", "envelope", "audit", "operation")
"""Beginnings of the names of tables that no retention touches: dead letters, what operators did."""
_HAS_SIZES = "SELECT 1 FROM pragma_compile_options WHERE compile_options = 'ENABLE_DBSTAT_VTAB'"
_SIZES = "SELECT tbl_name, pgsize FROM dbstat JOIN sqlite_master USING (name)"


def kept_bytes(file: File) -> int:
    """What of the file is kept for ever; nothing where this SQLite cannot tell."""
    execute = file.reader.execute
    if execute(_HAS_SIZES).fetchone() is None:
        return 0
    return sum(size for table, size in execute(_SIZES).fetchall() if table.startswith(_FOREVER))
