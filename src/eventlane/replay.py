"""A replay as a bulk operation: how fast it goes, when it stops by itself, and how far it is.

The decisions are pure. Who calls them keeps the `Pacing` and does what they say.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from eventlane.config import number
from eventlane.errors import ConfigError

__all__ = [
    "UNPACED",
    "LeftOut",
    "OperationKind",
    "OperationState",
    "OperationStatus",
    "OrderConflict",
    "Pace",
    "Pacing",
    "Plan",
    "admitted",
    "admitted_max",
    "clear_outcomes",
    "note_outcomes",
]

OperationKind = Literal["replay", "archive", "restore", "edit"]
OperationState = Literal["running", "paused", "done", "cancelled"]

_CANARY = (1, 10)
"""What its stages release; the rest follows."""
_OUTCOMES_MAX = 50
_CATCH_UP_MS = 250
"""A rate that was not used for so long may be used at once."""
_INTERVAL_MS = 100
"""At high rates several are released at a time, rather than one by one."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a replay goes, and what stops it.

    Raises:
        ConfigError: A number is none that it can be.
    """

    rate_per_s: float | None = 50.0
    """Letters and the parked events that they release; None: no limit."""
    canary: bool = True
    """1 first, then 10, then the rest: each stage once all before it has ended."""
    pause_above: float | None = 0.05
    """The share of the last 50 ended that may die again; above it the operation pauses."""

    def __post_init__(self) -> None:
        if self.rate_per_s is not None:
            number("replay(rate_per_s", self.rate_per_s, least=0.001, hint=" None is no limit.")
        if self.pause_above is not None:
            number("replay(pause_above", self.pause_above, least=0, hint=" None never pauses.")
            if self.pause_above > 1:
                raise ConfigError(
                    f"replay(pause_above={self.pause_above!r}): expected a share from 0 to 1, as "
                    "in 0.05. None never pauses."
                )
        if not isinstance(self.canary, bool):
            raise ConfigError(f"replay(canary={self.canary!r}): expected True or False.")


UNPACED = Pace(rate_per_s=None, canary=False, pause_above=None)
"""As fast as the group handles."""


class Pacing(msgspec.Struct, array_like=True):
    """Where a replay stands. A new one has released nothing."""

    stage: int = 0
    """How many stages have begun."""
    left: int = 0
    """What the present stage may still release."""
    paid_ms: float = 0.0
    """The rate is used up until then."""
    outcomes: int = 0
    """The last ones as bits, the newest lowest: 1 died again."""
    ended: int = 0
    """How many of these there are."""
    used_ms: float = 0.0
    """How long the rate is used up by the last one."""


def admitted(
    pace: Pace, pacing: Pacing, costs: Iterable[int], *, is_quiet: bool, now_ms: int
) -> tuple[int, int | None]:
    """How many of the next letters may be released now; `pacing` takes note of them.

    Args:
        pace: How fast it goes.
        pacing: Where it stands.
        costs: For each of the next letters 1, and the parked events that it releases.
        is_quiet: All that was released before has ended.
        now_ms: The wall time.

    Returns:
        How many, and when there may be more: None if that takes something to end first.
    """
    count = 0
    stages = len(_CANARY) if pace.canary else 0
    for cost in costs:
        if pacing.stage <= stages and pacing.left <= 0:
            if count or (pacing.stage and not is_quiet):
                return count, None
            pacing.left = _CANARY[pacing.stage] if pacing.stage < stages else 0
            pacing.stage += 1
        if pace.rate_per_s is not None:
            # Else the clock was set back since.
            pacing.paid_ms = min(pacing.paid_ms, now_ms + pacing.used_ms)
            if pacing.paid_ms > now_ms:
                return count, int(max(pacing.paid_ms, now_ms + _INTERVAL_MS)) + 1
            pacing.used_ms = cost * 1000 / pace.rate_per_s
            # The first one finds nothing that was left unused.
            since_ms = now_ms - _CATCH_UP_MS if pacing.paid_ms else now_ms
            pacing.paid_ms = max(pacing.paid_ms, since_ms) + pacing.used_ms
        pacing.left -= cost
        count += 1
    return count, None


def admitted_max(pace: Pace, pacing: Pacing) -> int | None:
    """No more letters than this are admitted at once; None: no limit."""
    limits: list[float] = []
    stages = len(_CANARY) if pace.canary else 0
    if pacing.stage < stages or (pacing.stage == stages and pacing.left > 0):
        limits.append(max(pacing.left, *_CANARY))
    if pace.rate_per_s is not None:
        limits.append(pace.rate_per_s * _CATCH_UP_MS / 1000 + 1)
    return int(min(limits)) if limits else None


def note_outcomes(pace: Pace, pacing: Pacing, died: Iterable[bool]) -> str | None:
    """Take note of what has ended; why the operation is to pause, None if it is not."""
    why: str | None = None
    for each in died:
        pacing.outcomes = (pacing.outcomes << 1 | each) & ((1 << _OUTCOMES_MAX) - 1)
        pacing.ended = min(pacing.ended + 1, _OUTCOMES_MAX)
        failed = pacing.outcomes.bit_count()
        if pace.pause_above is not None and failed > pace.pause_above * pacing.ended:
            why = why or (
                f"{failed} of the last {pacing.ended} that ended died again, "
                f"above pause_above={pace.pause_above:g}"
            )
    return why


def clear_outcomes(pacing: Pacing) -> None:
    """An operator has looked and lets it go on: what has ended so far counts no more."""
    pacing.outcomes = pacing.ended = 0


class LeftOut(msgspec.Struct, frozen=True):
    """A dead letter that an operation leaves as it is."""

    letter: UUID
    why: str


class OrderConflict(msgspec.Struct, frozen=True):
    """A dead letter that would pass an earlier one of its lane, which is not selected."""

    letter: UUID
    offset: int
    earlier: UUID
    earlier_offset: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would do. Nothing was changed."""

    count: int
    """Dead letters that would be replayed."""
    groups: dict[str, int]
    """How many of them in each group."""
    keys: int
    """Lanes that they lie in."""
    followers: int
    """Parked events that would follow, once all of them are resolved."""
    conflicts: tuple[OrderConflict, ...] = ()
    """The first 100 that make it refused, unless `allow_gap`."""
    conflict_count: int = 0
    refusals: tuple[LeftOut, ...] = ()
    """The first 100 that cannot be replayed: of a query they are left out, else all is refused."""
    refusal_count: int = 0


class OperationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far an operation is.

    `total` = pending + released + resolved + failed + returned + skipped + changed.
    """

    id: int
    kind: OperationKind
    state: OperationState
    why: str | None
    """Why it is paused or was cancelled."""
    groups: tuple[str, ...]
    actor: str
    reason: str
    query: str | None
    """What selected its letters; None where they were named."""
    started_at: datetime
    ended_at: datetime | None
    """When nothing of it was left; a cancelled one first waits for what was released."""
    total: int
    pending: int
    """Not released yet."""
    released: int
    """Given to the group, and not ended yet."""
    resolved: int
    failed: int
    """Died again."""
    returned: int
    """Open again without a run: it was cancelled, or ended by a reset, or an earlier one of their
    lane failed."""
    skipped: int
    """Left as they are, since they had changed meanwhile or were replayed too often:
    `Operation.left_out()` says why."""
    changed: int
    """Archived, or restored."""
    followers_done: int
    """Parked events that were released, and handled."""
    followers_dead: int
    waiting_for: str | None = None
    """What has to happen before it goes on."""

    @property
    def has_ended(self) -> bool:
        """Nothing of it is left to be done."""
        return self.ended_at is not None
