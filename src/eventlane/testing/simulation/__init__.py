"""A simulation: lanes, workers, crashes, slow disks, jumping clocks and operators, from one seed.

    python -m eventlane.testing.simulation --seed 7 --verbose

The library's own code runs, with its SQL on a real SQLite file, on one thread and in a time of its
own: `loop.py`. A seed draws everything: what groups and handlers there are and which faults befall
them (`plan.py`), what happens when (`mischief.py`), and which process goes on first. Then all is
calm, everything paused is resumed and everything dead is replayed, until nothing is left. The
checker judges the whole history, as the file itself told it (`observer.py`); promises that it does
not know are kept apart (`expectations.py`).

What stands in for the real thing, and so is not proven here:

- The thread that writes and the threads of handlers: their work is done at once, some time later.
  No race of two threads over the same memory can be found.
- The lock among the processes, and the kernel's locks and files of members: who is alive is known.
  Nobody rings a process when another one has written: it looks by itself.
- Durability: a process dies, and never the machine. Nothing is synced, no write is torn, and a full
  or failing disk fails a whole transaction, at its begin or its end.
- The opening of a file, its format and its permissions; a broker's own retention.

Real processes with `kill -9`, real disks that fail, and two events that fail at the same moment are
in `tests/crash`.
"""

from eventlane.testing.simulation.histories import Report, simulate
from eventlane.testing.simulation.series import Summary, run
from eventlane.testing.simulation.storage import Store

__all__ = ["Report", "Store", "Summary", "run", "simulate"]
