"""Many histories, one after the other or in several processes, and what they came to."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from eventlane.testing.simulation.histories import simulate
from eventlane.testing.simulation.storage import Store

__all__ = ["Summary", "run"]

_AT_ONCE = 500
"""Histories of one process, which is then replaced: what it has allocated goes with it."""
_SHOWN = 5


@dataclass(frozen=True)
class Summary:
    """What became of the histories of successive seeds."""

    first_seed: int
    count: int
    counts: Counter[str]
    """What happened in them, and how often."""
    failed: tuple[str, ...]
    """A report of each that is not clean."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong with any of them."""
        return not self.failed

    def __str__(self) -> str:
        happened = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        head = (
            f"simulation: {self.count:,} histories, seeds {self.first_seed} to "
            f"{self.first_seed + self.count - 1}: {len(self.failed)} not clean; {happened}"
        )
        return "\n\n".join([head, *self.failed[:_SHOWN]])


def run(
    count: int, first_seed: int = 0, *, processes: int = 1, until_failure: bool = False
) -> Summary:
    """Simulate the histories of `count` successive seeds.

    Args:
        count: How many.
        first_seed: The first of them.
        processes: How many work at once. With one, that is the process of the caller.
        until_failure: End with the first history that is not clean. Only with one process.
    """
    if processes == 1:
        return _run_here(count, first_seed, until_failure=until_failure)
    done, counts, failed = 0, Counter[str](), list[str]()
    for each in _run_elsewhere(count, first_seed, processes):
        done += each.count
        counts.update(each.counts)
        failed += each.failed
    return Summary(first_seed, done, counts, tuple(failed))


def _run_here(count: int, first_seed: int, *, until_failure: bool = False) -> Summary:
    done, counts, failed = 0, Counter[str](), list[str]()
    with Store() as store:
        for seed in range(first_seed, first_seed + count):
            report = simulate(seed, store)
            done += 1
            counts.update(report.counts)
            if not report.clean:
                failed.append(str(report))
                if until_failure:
                    break
    return Summary(first_seed, done, counts, tuple(failed))


def _run_elsewhere(count: int, first_seed: int, processes: int) -> Iterator[Summary]:
    end = first_seed + count
    size = max(1, min(_AT_ONCE, -(-count // processes)))
    parts = [(seed, min(size, end - seed)) for seed in range(first_seed, end, size)]
    for start in range(0, len(parts), processes):
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            running = [
                pool.submit(_run_here, part, seed)
                for seed, part in parts[start : start + processes]
            ]
            yield from (each.result() for each in running)
