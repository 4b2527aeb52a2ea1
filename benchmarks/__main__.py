"""`python -m benchmarks`: run them, show a table, write JSON."""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import (
    bench_backlog,
    bench_consume,
    bench_failures,
    bench_idle,
    bench_import,
    bench_lanes,
    bench_letters,
    bench_memory,
    bench_processes,
    bench_publish,
    bench_sharing,
)
from benchmarks.measuring import Benchmark, Result, Settings, now_s
from benchmarks.peers import side_by_side

__all__ = ["BENCHMARKS", "main", "run"]

BENCHMARKS: list[Benchmark] = [
    *bench_publish.BENCHMARKS,
    *bench_consume.BENCHMARKS,
    *bench_backlog.BENCHMARKS,
    *bench_failures.BENCHMARKS,
    *bench_letters.BENCHMARKS,
    *bench_lanes.BENCHMARKS,
    *bench_processes.BENCHMARKS,
    *bench_sharing.BENCHMARKS,
    *bench_idle.BENCHMARKS,
    *bench_memory.BENCHMARKS,
    *bench_import.BENCHMARKS,
]

WIDTH_MIN = 112
"""What the table needs."""


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names, or with rows of these names; all where none is given."""
    known = {name for each in BENCHMARKS for name in (each.name, *each.rows)}
    if unknown := sorted(set(names) - known):
        raise SystemExit(
            f"expected names of benchmarks, got {', '.join(unknown)}. There are: "
            f"{', '.join(sorted(known))}."
        )
    if not names:
        return BENCHMARKS
    return [each for each in BENCHMARKS if {each.name, *each.rows} & set(names)]


def run(names: Sequence[str], *, repeats: int, scale: float = 1.0) -> list[Result]:
    """Run benchmarks, each in a directory of its own that is gone afterwards."""
    console = Console(stderr=True)
    results: list[Result] = []
    start_s = now_s()
    for each in chosen(names):
        began_s = now_s()
        console.print(f"[dim]{each.name} …[/dim]", end="")
        with tempfile.TemporaryDirectory(prefix="eventlane-bench-") as directory:
            settings = Settings(directory=Path(directory), repeats=repeats, scale=scale)
            found = asyncio.run(each.run(settings))
        console.print(f"[dim] {now_s() - began_s:.0f} s[/dim]")
        wanted = {name for name in names if name in each.rows} or set(each.rows)
        results += [result for result in found if result.row.name in wanted]
    console.print(f"[dim]all of it: {(now_s() - start_s) / 60:.1f} minutes[/dim]")
    return results


def table(results: Sequence[Result]) -> Table:
    """What people look at."""
    shown = Table()
    for heading in ("name", "value", "unit", "baseline", "ratio", "min - max", "target", "reached"):
        numeric = heading in ("value", "baseline", "ratio", "min - max")
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for result in results:
        row, reached = result.row, result.is_reached
        low, high = result.spread
        shown.add_row(
            row.name,
            f"{row.value:,.4g}" if row.value < 1000 else f"{row.value:,.0f}",
            row.unit,
            f"{row.baseline_value:,.4g}"
            if row.baseline_value < 1000
            else f"{row.baseline_value:,.0f}",
            "" if row.ratio is None else f"{row.ratio:.3f}",
            f"{low:.3g} - {high:.3g}",
            row.target or "",
            {None: "", True: "[green]yes", False: "[red]no"}[reached],
        )
    return shown


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--repeats", type=int, help="pairs of turns (5), or of the peers (3)")
    parser.add_argument(
        "--peers", action="store_true", help="the same job on other libraries, in a table"
    )
    options = parser.parse_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: expected 1 or more")
    if options.peers and options.only:
        parser.error("--only names benchmarks, and --peers is none of them: leave one of them out")
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if options.peers:
        results = side_by_side.main(options.repeats or side_by_side.ROUNDS)
    else:
        results = run(options.only, repeats=options.repeats or 5)
    if options.json is not None:
        rows = msgspec.json.encode([result.row for result in results])
        options.json.write_bytes(msgspec.json.format(rows, indent=2) + b"\n")
    console = Console()
    if not options.peers:  # they have shown theirs
        if console.width < WIDTH_MIN:
            console = Console(width=WIDTH_MIN)
        console.print(table(results))
        for result in results:
            console.print(f"{result.row.name}: against {result.row.baseline}. {result.note}")
    if busy > 0.5:
        console.print(
            f"[yellow]The machine was busy when this began (load {busy:.1f} for each core): ratios "
            "hold better than values, and both are worth repeating.[/yellow]"
        )


if __name__ == "__main__":
    # What dies in a benchmark is meant to, and is counted there.
    logging.getLogger("eventlane").setLevel(logging.CRITICAL)
    main(sys.argv[1:])
