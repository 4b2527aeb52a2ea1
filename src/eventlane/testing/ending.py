"""What a checker asks in the end: of the log, of what is open, of dead letters and of accounts."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from uuid import UUID

from eventlane.message import Position
from eventlane.testing.history import Final, Lane, Letter, Progress, Published, Started
from eventlane.testing.standing import OK, PARKED, SETTLED, Memory, Standing, is_within
from eventlane.testing.verdict import Findings, Kind, in_words

__all__ = ["check_end"]

_OPEN = ("open", "replaying")
_PASSED = "it is below the watermark, but has neither an outcome nor a place in parking"


def check_end(
    final: Final, published: Sequence[Published], memory: Memory, findings: Findings
) -> None:
    """Judge what is left after the last operation."""
    ending = _Ending(final, memory, findings)
    ending.check_log(published)
    ending.check_standings()
    ending.check_letters()
    ending.check_accounts()


class _Ending:
    def __init__(self, final: Final, memory: Memory, findings: Findings) -> None:
        self._final = final
        self._memory = memory
        self._findings = findings
        self._report = findings.report
        self._checked = findings.checked
        self._progress = {(p.group, p.topic, p.partition): p for p in final.progress or ()}
        self._letters: defaultdict[tuple[str, str, int], dict[int, Letter]] = defaultdict(dict)
        for letter in final.letters or ():
            place = (letter.group, letter.topic, letter.partition)
            self._letters[place][letter.offset] = letter
        self._silent: defaultdict[str, list[tuple[Standing, int, str]]] = defaultdict(list)
        """By group, what is lost, unless it was skipped; and how it seems to be lost."""

    # --- the log ----------------------------------------------------------------------------

    def check_log(self, published: Sequence[Published]) -> None:
        """Is what was acknowledged there, and each event once?"""
        places: dict[tuple[str, UUID], Position] = {}
        for log in self._final.log or ():
            for offset, _, event_id in log.events:
                self._checked[Kind.DUPLICATE] += 1
                here = Position(log.topic, log.partition, offset)
                first = places.setdefault((log.topic, event_id), here)
                if first != here:
                    sentence = f"event {event_id} is at {first.partition}/{first.offset} too"
                    self._report(Kind.DUPLICATE, here, offset, sentence)
        for each in published:
            known = self._memory.logs[each.topic, each.partition]
            if known.read is None or each.offset < known.first:
                continue
            self._checked[Kind.LOST] += 1
            if each.offset not in known.read:
                sentence = "its publish was acknowledged, and it is not on the log"
                self._report(Kind.LOST, each, each.offset, sentence, each)

    # --- what became of every event ---------------------------------------------------------

    def check_standings(self) -> None:
        """Is anything open that should not be, or over that cannot be?"""
        groups = {(standing.group, standing.topic) for standing in self._memory.standings.values()}
        for topic, partition in list(self._memory.logs):
            for group in sorted(group for group, its_topic in groups if its_topic == topic):
                self._memory.stand(group, topic, partition)
        for place, standing in self._memory.standings.items():
            progress = self._progress.get(place)
            self._check_open(standing, progress, self._letters[place])
            if progress is not None:
                self._check_passed(standing, progress, self._letters[place])
        for group, silent in self._silent.items():
            self._check_silent(group, silent)

    def _check_open(
        self, standing: Standing, progress: Progress | None, letters: Mapping[int, Letter]
    ) -> None:
        """What nothing became of: may it be open?"""
        is_stopped = self._is_stopped(standing, progress)
        must_end = self._final.idle and standing.log.read is not None and not is_stopped
        written_to = self._written_to(standing)
        stuck: set[Lane] = set()
        for offset in self._offsets(standing):
            lane = standing.lane_at(offset)
            later = standing.highest.get(lane)
            if later is not None and later.offset <= offset:
                later = None
            self._checked[Kind.POLL_SKIP] += later is not None
            self._checked[Kind.UNSEEN] += must_end
            letter = letters.get(offset)
            if letter is not None and letter.state in _OPEN and letter.on_dead != "continue":
                stuck.add(lane)
            if letter or standing.is_covered(offset) or _is_below(progress, offset):
                continue
            has_written_later = written_to.get(lane, -1) > offset
            if later and (has_written_later or must_end or not standing.is_counted):
                self._check_passed_over(standing, offset, later, has_written_later)
            if must_end:
                self._check_left(standing, offset, progress, is_stuck=lane in stuck)
            if standing.last.get(offset) not in OK:
                stuck.add(lane)

    def _written_to(self, standing: Standing) -> dict[Lane, int]:
        """The highest offset of each lane of which something was written."""
        if not standing.is_counted:
            return {}
        covered = filter(standing.is_covered, standing.log.offsets)
        return {standing.lane_at(offset): offset for offset in covered}

    def _check_passed_over(
        self, standing: Standing, offset: int, later: Started, has_written_later: bool
    ) -> None:
        """A later event of its lane has run. What was skipped without a run is written by now."""
        if offset not in standing.last:
            sentence = f"it never ran, but {in_words(later)} of offset {later.offset} did"
            self._report(Kind.POLL_SKIP, standing, offset, sentence, later)
        elif has_written_later:
            sentence = "it has no outcome, but a later event of its lane is settled"
            self._report(Kind.OVERTAKE, standing, offset, sentence, later)

    def _check_left(
        self, standing: Standing, offset: int, progress: Progress | None, *, is_stuck: bool
    ) -> None:
        """The group is idle, and it is open."""
        if self._findings.has(Kind.POLL_SKIP, standing, offset):
            return
        ran = standing.last.get(offset)
        if standing.is_counted or progress is not None:
            sentence = "it is open, though the group is idle"
            self._report(Kind.UNSEEN, standing, offset, sentence)
        elif ran is None and not is_stuck:
            sentence = "it never ran, though the group is idle"
            self._report(Kind.UNSEEN, standing, offset, sentence)
        elif ran not in (None, *OK) and not is_stuck and self._final.letters is not None:
            sentence = "its last run did not end well, the group is idle, and it is not dead"
            self._silent[standing.group].append((standing, offset, sentence))

    def _offsets(self, standing: Standing) -> list[int]:
        """What the group had to handle, as far as the history names it."""
        offsets = standing.log.offsets
        start = standing.start if standing.start >= 0 else standing.log.first
        return offsets[bisect_left(offsets, start) :]

    def _is_stopped(self, standing: Standing, progress: Progress | None) -> bool:
        """Whether what is open may stay open until an operator acts."""
        account = (self._final.groups or {}).get(standing.group)
        if (account and (account.paused or account.blocked)) or (progress and progress.blocked):
            return True
        letters = self._letters[standing.group, standing.topic, standing.partition].values()
        return any(each.on_dead == "stop" and each.state in _OPEN for each in letters) or any(
            on_dead == "stop" and standing.letters[offset] in _OPEN
            for offset, on_dead in standing.on_dead.items()
        )

    def _check_passed(
        self, standing: Standing, progress: Progress, letters: Mapping[int, Letter]
    ) -> None:
        """What is below the watermark, or settled above it: what became of it?"""
        parked = set(progress.parked)
        for offset in self._offsets(standing):
            if not _is_below(progress, offset):
                continue
            self._checked[Kind.LOST] += 1
            ran = standing.last.get(offset)
            if standing.is_covered(offset) or offset in parked or offset in letters or ran in OK:
                continue
            if standing.is_counted:
                self._report(Kind.LOST, standing, offset, _PASSED)
            elif ran is None or self._final.letters is not None:
                self._silent[standing.group].append((standing, offset, _PASSED))
        if standing.is_counted:
            for offset, state in standing.states.items():
                if state == PARKED:
                    self._checked[Kind.PARKED_LOST] += 1
                    if offset not in parked:
                        sentence = "it was parked, and has neither an outcome nor its place there"
                        self._report(Kind.PARKED_LOST, standing, offset, sentence)

    def _check_silent(self, group: str, silent: list[tuple[Standing, int, str]]) -> None:
        """So many may have been skipped, which no run tells of, as the account says."""
        account = (self._final.groups or {}).get(group)
        if account is None:  # What has run is skipped only where its run says so.
            silent = [each for each in silent if each[1] in each[0].last]
        if len(silent) > (0 if account is None else account.skipped):
            for standing, offset, sentence in silent:
                self._report(Kind.LOST, standing, offset, sentence)

    # --- dead letters -----------------------------------------------------------------------

    def check_letters(self) -> None:
        """Are letters true, and told of?"""
        for letter in self._final.letters or ():
            standing = self._memory.standing(letter)
            if letter.state in _OPEN:
                self._checked[Kind.IN_DLQ_AND_DONE] += 1
                if standing.is_counted:
                    is_done = standing.states.get(letter.offset) == SETTLED
                else:
                    ended = standing.outcome_for(standing.owner, letter.offset)
                    is_done = self._final.idle and ended in OK
                if is_done:
                    sentence = f"its dead letter is {letter.state}, but it was handled"
                    self._report(Kind.IN_DLQ_AND_DONE, letter, letter.offset, sentence)
            if letter.crashes:
                self._memory.charges.append((standing, letter.offset, letter.crashes, self._final))
        for standing, offset, count, by in self._memory.charges if self._memory.has_deaths else ():
            self._checked[Kind.BYSTANDER_CHARGED] += 1
            alone = standing.crashes[offset]
            if count > alone:
                sentence = f"{count} ends of a process are charged to it; it ran alone in {alone}"
                self._report(Kind.BYSTANDER_CHARGED, standing, offset, sentence, by)
        if self._final.dlq is not None:
            self._check_dlq(set(self._final.dlq))

    def _check_dlq(self, told: set[tuple[str, str, int, int]]) -> None:
        dead = {
            (each.group, each.topic, each.partition, each.offset)
            for each in self._final.letters or ()
        }
        for standing in self._memory.standings.values():
            dead |= {
                (standing.group, standing.topic, standing.partition, offset)
                for offset in standing.letters
            }
        for group, topic, partition, offset in sorted(dead):
            self._checked[Kind.DEAD_NOT_IN_DLQ] += 1
            if (group, topic, partition, offset) not in told:
                self._report(
                    Kind.DEAD_NOT_IN_DLQ,
                    self._memory.stand(group, topic, partition),
                    offset,
                    f"it has a dead letter, and is not on {topic}.{group}.dlq",
                )

    # --- accounts ---------------------------------------------------------------------------

    def check_accounts(self) -> None:
        """Do counters add up, and to what was settled?"""
        for group, account in (self._final.groups or {}).items():
            self._checked[Kind.ACCOUNTING] += 1
            if not account.balances:
                self._findings.report_group(
                    Kind.ACCOUNTING, group, f"the account does not balance: {account}"
                )
            standings = [each for each in self._memory.standings.values() if each.group == group]
            if not any(each.settles for each in standings) or any(
                each.is_doubtful for each in standings
            ):
                continue
            for name in ("done", "skipped", "parked", "dead", "archived", "edited"):
                settled = sum(each.counters[name] for each in standings)
                stated = getattr(account, name)
                if settled != stated:
                    self._findings.report_group(
                        Kind.ACCOUNTING,
                        group,
                        f"the account says {name}={stated}, but {settled} were settled so",
                    )


def _is_below(progress: Progress | None, offset: int) -> bool:
    if progress is None:
        return False
    return offset < progress.watermark or is_within(offset, progress.settled)
