"""Mutations of the code: one line made wrong. `python -m tests.simulation.mutations NAME [COUNT]`
simulates with one of them, in a process of its own, until a history is not clean.

Those marked with a star are bugs that were there, and that the simulation has found.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src"
FOUND_WITHIN = 500


class Mutation(NamedTuple):
    module: str
    old: str
    new: str

    @property
    def path(self) -> Path:
        return SOURCE / (self.module.replace(".", "/") + ".py")

    def source(self) -> str:
        """The module's source with the mutation in it."""
        text = self.path.read_text()
        found = text.count(self.old)
        assert found == 1, (
            f"{self.path.name}: expected this once, found it {found} times; if the code has "
            f"changed, so must the mutation:\n{self.old}"
        )
        return text.replace(self.old, self.new)


_LANES, _SCHEDULE, _SPAN = "eventlane.lanes", "eventlane.schedule", "eventlane.span"
_EMBEDDED = "eventlane.brokers.embedded"

MUTATIONS: dict[str, Mutation] = {
    # Order
    "a queue does not wait for what is parked before it": Mutation(
        "eventlane.lane",
        "return None if self.parked else self.queue",
        "return self.queue",
    ),
    "a lane goes on behind the dead letter that closes it": Mutation(
        "eventlane.lane",
        "        if self.blockers:\n            return None\n",
        "",
    ),
    "a key opens while events wait in its queue": Mutation(
        _LANES,
        "        lane = self.closed.pop(delivery.lane)\n        if lane is not None:\n",
        "        lane = self.closed.pop(delivery.lane)\n"
        "        if lane is not None and not lane.queue:\n",
    ),
    "parked events are read back in the wrong order": Mutation(
        _SCHEDULE, "lane.drained.append(delivery)", "lane.drained.insert(0, delivery)"
    ),
    "what was put back is the last of its lane": Mutation(
        _LANES,
        "        lane.line_of(delivery).insert(0, delivery)\n"
        "        lane.running = False\n"
        "        self._put_back.setdefault",
        "        lane.line_of(delivery).append(delivery)\n"
        "        lane.running = False\n"
        "        self._put_back.setdefault",
    ),
    "a replay runs though an earlier one of its lane died again": Mutation(
        _LANES,
        "            if blocks or trouble.operation == operation:\n",
        "            if False:\n",
    ),
    "a replay runs that was released before an earlier one had died again *": Mutation(
        _LANES, "            if command.behind or same:\n", "            if False:\n"
    ),
    # Durable before it goes on
    "a lane does not wait until a failed attempt is durable": Mutation(
        _LANES,
        "            self._park_until(lane, attempts.due_ms)\n        self._await(lane)\n",
        "            self._park_until(lane, attempts.due_ms)\n"
        "        lane.running = False\n        self._advance(lane)\n",
    ),
    "a lane does not wait until a dead letter is durable": Mutation(
        _LANES,
        "            self.ledger.changed.add(lane.key)\n"
        "        self._await(lane)\n\n    def put_back",
        "            self.ledger.changed.add(lane.key)\n"
        "        self.ledger.urgent, lane.running = True, False\n"
        "        self._advance(lane)\n\n    def put_back",
    ),
    "lanes go on before their settlement is written": Mutation(
        "eventlane.settling",
        "                await self._consumer.settle(",
        "                for lanes, _ in collected:\n"
        "                    lanes.committed()\n"
        "                await self._consumer.settle(",
    ),
    "a settlement that could not be written is dropped": Mutation(
        "eventlane.settling", "                await sleep(delay_s)\n", "                return\n"
    ),
    # The watermark
    "the watermark is one too far": Mutation(
        _SPAN,
        "                return chunk.offsets[index]\n        return self.next_offset\n\n"
        "    @property\n    def next_untaken",
        "                return chunk.offsets[index] + 1\n        return self.next_offset\n\n"
        "    @property\n    def next_untaken",
    ),
    "what a former owner settled above the watermark is forgotten": Mutation(
        _SPAN, "            if stop > self.next_offset:\n", "            if False:\n"
    ),
    "what a former owner settled above the watermark runs again": Mutation(
        _SPAN, "bytes([SETTLED]) * (after - first)", "bytes(after - first)"
    ),
    # Owners
    "a settlement under a stale epoch is accepted": Mutation(
        f"{_EMBEDDED}.groups",
        "AND owner = ?14 AND epoch = ?15",
        "AND ?14 != '' AND epoch >= 0 * ?15",
    ),
    "a new owner does not know of failed attempts": Mutation(
        f"{_EMBEDDED}.owners",
        "attempts=failures.stored_attempts(connection, place, watermark)",
        "attempts=()",
    ),
    "bystanders are charged when a process dies *": Mutation(
        f"{_EMBEDDED}.owners", "max(ends, min(ends + 1, ALONE_IN_GROUP))", "ends + 1"
    ),
    # What is kept of failures
    "failed attempts are not written": Mutation(
        f"{_EMBEDDED}.failures", "    if settlement.attempts:\n", "    if False:\n"
    ),
    "the last of several parked events is lost": Mutation(
        f"{_EMBEDDED}.failures", "_encode(part)\n", "_encode(part[:-1] or part)\n"
    ),
    "what was parked is counted twice when it leaves": Mutation(
        _LANES, "        self.ledger.unparked += 1\n", "        self.ledger.unparked += 2\n"
    ),
    "a lane is looked up while it is written *": Mutation(
        "eventlane.directory",
        "new = [state for state in states if not self._is_here(state.lane)]",
        "new = [state for state in states if state.lane not in self.closed]",
    ),
    "gaps do not tell of archived letters": Mutation(
        _LANES,
        "            self._note_gap(lane.key, letter.offset)\n"
        "            self.ledger.commands.append(command.id)\n",
        "            self.ledger.commands.append(command.id)\n",
    ),
    # Retries
    "a retry starts early": Mutation(
        _SCHEDULE, "trouble.due_ms > self.now_ms:", "trouble.due_ms > self.now_ms + 30:"
    ),
    "the first delayed retry has no delay": Mutation(
        "eventlane.retry", "    if delayed < 1:\n", "    if delayed < 2:\n"
    ),
    "an event has one attempt too many": Mutation(
        "eventlane.retry", "if attempt >= policy.attempts or", "if attempt > policy.attempts or"
    ),
    "what a failed run published is published": Mutation(
        "eventlane.conclude",
        "        delivery.published = None\n        self.run_failed(worker, error)\n",
        "        delivery.origin.lanes.ledger.publish(delivery)\n"
        "        self.run_failed(worker, error)\n",
    ),
    # Operators
    "a replay runs in another group": Mutation(
        f"{_EMBEDDED}.steps",
        'f"SELECT ?, topic, partition, ?, letter.id, ? ',
        "f\"SELECT (SELECT max(name) FROM consumer_group WHERE ? != ''), \"\n"
        '        f"topic, partition, ?, letter.id, ? ',
    ),
    "an owner carries out a command each time it begins": Mutation(
        f"{_EMBEDDED}.failures", "    if settlement.commands:\n", "    if False:\n"
    ),
    "a paused operation that is resumed waits for ever *": Mutation(
        "eventlane.advancing", "_LOOK_S = 1.0\n", "_LOOK_S = 1e6\n"
    ),
    "an edited event counts as done besides": Mutation(
        f"{_EMBEDDED}.groups", "                edited += 1\n", "                done += 1\n"
    ),
    "what replaces an edited letter does not close its lane as that did": Mutation(
        f"{_EMBEDDED}.operators",
        ' fingerprint, app_version, on_dead, "\n',
        " fingerprint, app_version, 'stop', \"\n",
    ),
    # The log
    "publishers are told the place of the event behind theirs": Mutation(
        f"{_EMBEDDED}.work",
        "offsets = range(stretch.base, stretch.base + len(futures))",
        "offsets = range(stretch.base + 1, stretch.base + 1 + len(futures))",
    ),
    "what is published fails with the disk, and was acknowledged": Mutation(
        f"{_EMBEDDED}.work", "        if self.error is not None:\n", "        if False:\n"
    ),
    "where a partition ends is remembered from a failed transaction": Mutation(
        f"{_EMBEDDED}.log",
        '        """Forget what was not written."""\n        self._ends.clear()\n',
        '        """Forget what was not written."""\n',
    ),
    # Standing still
    "due lanes that cannot be looked up now are looked up without end *": Mutation(
        _LANES, "if unknown_ms is None or self.wants_due:", "if unknown_ms is None:"
    ),
    "nothing is fetched once the settled set is full *": Mutation(
        _LANES,
        "is_crowded = self.is_crowded and span.next_offset > span.watermark",
        "is_crowded = self.is_crowded",
    ),
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from its mutated source."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._mutation.path))

    def exec_module(self, module: ModuleType) -> None:
        code = compile(self._mutation.source(), str(self._mutation.path), "exec")
        exec(code, module.__dict__)


def main(name: str, count: int) -> None:
    sys.meta_path.insert(0, _Finder(MUTATIONS[name]))
    from eventlane.testing.simulation import run  # noqa: PLC0415  # only now, mutated

    summary = run(count, until_failure=True)
    if summary.clean:
        print(f"not found in {summary.count} histories")
    else:
        what = summary.failed[0].splitlines()[1]
        print(f"found in {summary.count} histories: {what}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else FOUND_WITHIN)
