"""What a checker asks of settlements, and of what operators write."""

from itertools import chain

from eventlane.testing.history import LetterChanged, Settled
from eventlane.testing.standing import SETTLED, Memory, Standing
from eventlane.testing.verdict import Findings, Kind

__all__ = ["Settlements"]


class Settlements:
    """Judges what is written by what was before it."""

    def __init__(self, memory: Memory, findings: Findings) -> None:
        self._memory = memory
        self._report = findings.report
        self._overtake = findings.overtake
        self._checked = findings.checked

    def letter_changed(self, change: LetterChanged) -> None:
        standing = self._memory.standing(change)
        self._memory.failed_in[change.topic, change.partition, change.offset].add(change.group)
        if change.state == "replaying":
            self._checked[Kind.DOUBLE_REPLAY] += not standing.is_doubtful
            is_replayed = standing.letters.get(change.offset) == "replaying"
            if is_replayed and not standing.is_doubtful:
                self._report(
                    Kind.DOUBLE_REPLAY,
                    standing,
                    change.offset,
                    "a replay began while another one of the same dead letter was open",
                    change,
                )
        standing.change(change.offset, change.state)

    def settled(self, settled: Settled) -> None:
        standing = self._memory.standing(settled)
        if settled.stale:
            self._checked[Kind.FENCED_WRITE] += 1
            if settled.accepted:
                self._report(
                    Kind.FENCED_WRITE,
                    standing,
                    None,
                    f"a settlement by {settled.process} under the stale epoch {settled.epoch} was "
                    "accepted",
                    settled,
                )
        if settled.accepted is None:
            standing.is_doubtful = True
        if not settled.accepted:
            return
        new = self._check_watermark(standing, settled)
        unparked = standing.park(settled)
        if standing.is_counted:
            self._check_count(standing, settled, new)
            if self._memory.has_ends and settled.group in self._memory.groups_run:
                self._check_outcomes(standing, settled, new, unparked)
        self._check_failures(standing, settled)
        self._memory.charge(standing, settled)
        standing.write(settled, new, unparked)

    def _check_watermark(self, standing: Standing, settled: Settled) -> list[int]:
        """Returns the offsets that are new below the watermark, or in the runs above it."""
        epoch, before = standing.epoch, standing.watermark
        new, gone = standing.cover(settled)
        self._checked[Kind.WATERMARK_DOWN] += 1
        if settled.epoch == epoch and settled.watermark < before:
            self._report(
                Kind.WATERMARK_DOWN,
                standing,
                settled.watermark,
                f"the watermark went down to it from {before} in epoch {epoch}",
                settled,
            )
        elif gone and settled.watermark >= before:
            self._report(
                Kind.WATERMARK_DOWN,
                standing,
                gone[0],
                "it was settled above the watermark, and a later settlement has forgotten it",
                settled,
            )
        return new

    def _check_count(self, standing: Standing, settled: Settled, new: list[int]) -> None:
        if standing.log.read is None or standing.start < standing.log.first:
            return
        self._checked[Kind.ACCOUNTING] += 1
        outcomes = settled.done + settled.skipped + len(settled.dead)
        counted = outcomes + len(settled.parked) - settled.unparked
        if counted != len(new):
            self._report(
                Kind.ACCOUNTING,
                standing,
                settled.watermark,
                f"the settlement with this watermark counts {counted} events (done + skipped + "
                f"dead + parked - unparked), but {len(new)} are new in its watermark and runs",
                settled,
            )

    def _check_outcomes(
        self, standing: Standing, settled: Settled, new: list[int], unparked: list[int]
    ) -> None:
        """What is settled must have run, or be among those that were skipped without a run."""
        self._checked[Kind.WATERMARK_PAST_OPEN] += 1
        self._checked[Kind.PARKED_LOST] += len(unparked)
        tenure = standing.tenures.get(settled.process)
        apart = {offset for _, offset in settled.parked} | {offset for offset, _ in settled.dead}
        skips_left, freed = settled.skipped, set(unparked)
        silent: list[int] = []
        running: list[int] = []
        for offset in chain(new, unparked):
            outcome = standing.outcome_for(tenure, offset)
            if outcome == "done" or offset in apart:
                continue
            if outcome == "skipped":
                skips_left -= 1
            else:
                (running if outcome == "running" else silent).append(offset)
        if len(silent) <= skips_left:
            silent = []
        for offset in chain(running, silent):
            self._report(
                Kind.PARKED_LOST if offset in freed else Kind.WATERMARK_PAST_OPEN,
                standing,
                offset,
                f"a settlement ({settled.process}, watermark {settled.watermark}) "
                f"{'takes it from the parked' if offset in freed else 'counts it as handled'}, but "
                f"no run of it had ended well, and {settled.skipped} were skipped",
                settled,
            )
        self._check_resolved(standing, settled)

    def _check_resolved(self, standing: Standing, settled: Settled) -> None:
        tenure = standing.tenures.get(settled.process)
        for offset, state, outcome in settled.letters:
            if (state, outcome) != ("resolved", "done"):
                continue
            self._checked[Kind.LOST] += 1
            if standing.outcome_for(tenure, offset) != "done":
                self._report(
                    Kind.LOST,
                    standing,
                    offset,
                    "its dead letter was resolved, but no run of the replay was done",
                    settled,
                )

    def _check_failures(self, standing: Standing, settled: Settled) -> None:
        tenure = standing.tenures.get(settled.process)
        failures = (settled.attempts, settled.dead, ((offset, 0) for _, offset in settled.parked))
        for offset, _ in chain(*failures):
            later = tenure and tenure.highest.get(standing.lane_at(offset))
            if later and offset < later.offset and offset not in standing.letters:
                self._overtake(standing, offset, later, settled)
        for offset, _ in settled.dead:
            self._memory.failed_in[settled.topic, settled.partition, offset].add(settled.group)
            self._checked[Kind.IN_DLQ_AND_DONE] += standing.is_counted
            if standing.is_counted and standing.states.get(offset) == SETTLED:
                self._report(
                    Kind.IN_DLQ_AND_DONE,
                    standing,
                    offset,
                    "a settlement makes it a dead letter, and another one has counted it as done",
                    settled,
                )
