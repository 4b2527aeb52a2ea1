"""`python -m eventlane.testing.simulation --seed N [--verbose]`: one history again, or many."""

import argparse
import sys

from eventlane.testing.simulation.histories import simulate
from eventlane.testing.simulation.series import run
from eventlane.testing.simulation.storage import Store


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eventlane.testing.simulation",
        description="Simulate the history of a seed, and check it; of many seeds with --count.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the history, or of the first one")
    parser.add_argument("--count", type=int, default=1, help="how many histories")
    parser.add_argument("--processes", type=int, default=1, help="how many work at once")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tell the story of the first one"
    )
    given = parser.parse_args()
    if given.count > 1:
        summary = run(given.count, given.seed, processes=given.processes)
        sys.stdout.write(f"{summary}\n")
        return 0 if summary.clean else 1
    with Store() as store:
        report = simulate(given.seed, store)
    if given.verbose:
        sys.stdout.writelines(f"{line}\n" for line in report.story())
    sys.stdout.write(f"{report}\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(_main())
