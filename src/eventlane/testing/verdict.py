"""What a checker finds: the kinds of anomalies, one of them, and the verdict over all."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import msgspec

from eventlane.testing.history import Final, Operation, Started
from eventlane.testing.standing import KnownLog
from eventlane.wording import key_in_words

__all__ = ["Anomaly", "Findings", "Kind", "Place", "Verdict", "in_words"]

_SHOWN = 8


class Kind(StrEnum):
    """What may be wrong with a history."""

    LOST = "lost"
    """An acknowledged publish is not on the log; an offset below a watermark has neither an outcome
    nor a place among the parked; a dead letter is resolved without a run that was done."""
    UNSEEN = "unseen"
    """An event is on the log, the group is idle, and nothing became of it."""
    DUPLICATE = "duplicate"
    """One event is on a topic twice."""
    INCONSISTENT_OFFSETS = "inconsistent offsets"
    """Two events have one offset."""
    POLL_SKIP = "poll skip"
    """A group passed over an event: a later one of its lane ran, this one never did."""
    OVERTAKE = "overtake"
    """An event started while an earlier one of its lane had no outcome."""
    TWO_AT_ONCE = "two of a lane at once"
    """A process began a run while another one of that lane had not ended."""
    RUN_AGAIN = "run again"
    """An owner ran an event whose outcome was durable, or its own."""
    CROSS_GROUP_LEAK = "cross-group leak"
    """A replay ran in a group in which the event had not failed."""
    DEAD_NOT_IN_DLQ = "dead but not in dlq"
    """A dead letter is not on its dead-letter topic."""
    IN_DLQ_AND_DONE = "in dlq and done"
    """An event with an outcome has an open dead letter."""
    DOUBLE_REPLAY = "double open replay"
    """A replay of a letter began before the one before had ended."""
    PARKED_LOST = "parked lost"
    """A parked event is gone, and has no outcome."""
    EARLY_RETRY = "early retry"
    """A retry started before it was due."""
    WATERMARK_PAST_OPEN = "watermark past an open offset"
    """A settlement counts an event as handled that was not."""
    WATERMARK_DOWN = "watermark going down"
    """Within an epoch, or what was settled above the watermark was forgotten."""
    ATTEMPTS_DOWN = "attempts going down"
    """A run's attempt was counted before."""
    BYSTANDER_CHARGED = "bystander charged"
    """The end of a process was charged to an event that did not run alone in it."""
    FENCED_WRITE = "fenced write accepted"
    """A settlement of a former owner was written."""
    ACCOUNTING = "accounting off"
    """Counters do not add up, or are not those of the history."""


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    kind: Kind
    sentence: str
    """What, and where."""
    group: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    key: bytes | None = None
    operations: tuple[Operation, ...] = ()
    """Which operations show it."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `check` found. Its text is a report whose last line is the verdict."""

    anomalies: tuple[Anomaly, ...]
    checked: Mapping[Kind, int]
    """How many operations (or events, letters, counters) each check looked at; 0: not made."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong, and something was checked."""
        return not self.anomalies and any(self.checked.values())

    @property
    def unchecked(self) -> tuple[Kind, ...]:
        """Checks that were not made, since nothing that they need was recorded."""
        return tuple(kind for kind, count in self.checked.items() if not count)

    def __str__(self) -> str:
        lines = [str(each) for each in self.anomalies[:_SHOWN]]
        counts = Counter(each.kind for each in self.anomalies)
        made = [f"{kind} {counts[kind]} of {n:,}" for kind, n in self.checked.items() if n]
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        if len(self.anomalies) > _SHOWN:
            lines.append(f"... and {len(self.anomalies) - _SHOWN} more")
        lines.append(f"checked: {', '.join(made) or '-'}")
        if self.unchecked:
            lines.append(f"not checked, nothing of it was recorded: {', '.join(self.unchecked)}")
        if self.anomalies:
            noun = "anomaly" if len(self.anomalies) == 1 else "anomalies"
            lines.append(f"NOT CLEAN: {len(self.anomalies)} {noun} ({kinds})")
        elif made:
            lines.append(f"CLEAN: no anomaly in {len(made)} of {len(self.checked)} checks")
        else:
            lines.append("NOTHING CHECKED: the history has nothing to check")
        return "\n".join(lines)


class Place(Protocol):
    """A partition, and with a `group` attribute what that group makes of it."""

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...


class Findings:
    """What was found so far."""

    def __init__(self, logs: Mapping[tuple[str, int], KnownLog]) -> None:
        self.anomalies: list[Anomaly] = []
        self.checked: Counter[Kind] = Counter()
        self._logs = logs
        self._reported: set[tuple[object, ...]] = set()

    def report(
        self,
        kind: Kind,
        at: Place,
        offset: int | None,
        sentence: str,
        *operations: Operation | None,
    ) -> None:
        """Something is wrong; once for each kind and place."""
        group: str | None = getattr(at, "group", None)
        mark = _mark(kind, at, offset)
        if mark in self._reported:
            return
        self._reported.add(mark)
        where = f"{at.topic}/{at.partition}"
        if group is not None:
            where = f"{group}, {where}"
        key = None
        if offset is not None:
            where = f"{where}, offset {offset}"
            key = self._logs[at.topic, at.partition].key_of(offset)
            if key is not None:
                where = f"{where}, key {key_in_words(key)}"
        shown = tuple(each for each in operations if each and not isinstance(each, Final))
        self.anomalies.append(
            Anomaly(
                kind=kind,
                sentence=f"{where}: {sentence}",
                group=group,
                topic=at.topic,
                partition=at.partition,
                offset=offset,
                key=key,
                operations=shown,
            )
        )

    def has(self, kind: Kind, at: Place, offset: int) -> bool:
        """Whether that was reported."""
        return _mark(kind, at, offset) in self._reported

    def report_group(self, kind: Kind, group: str, sentence: str) -> None:
        """Something is wrong with a group as a whole."""
        self.anomalies.append(Anomaly(kind=kind, sentence=f"{group}: {sentence}", group=group))

    def overtake(
        self, at: Place, offset: int, later: Started, shown: Operation | None = None
    ) -> None:
        """A later event of its lane started before it had an outcome."""
        self.report(
            Kind.OVERTAKE,
            at,
            offset,
            f"it had no outcome when {in_words(later)} of offset {later.offset} of its lane "
            "started",
            later,
            shown,
        )

    def verdict(self) -> Verdict:
        """All of it."""
        return Verdict(
            anomalies=tuple(self.anomalies), checked={kind: self.checked[kind] for kind in Kind}
        )


def _mark(kind: Kind, at: Place, offset: int | None) -> tuple[object, ...]:
    return kind, getattr(at, "group", None), at.topic, at.partition, offset


def in_words(started: Started) -> str:
    """Which run it was."""
    replay = " of a replay" if started.replayed else ""
    return f"attempt {started.attempt}{replay} in {started.process}"
