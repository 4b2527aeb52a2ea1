"""The bounds of a running app, in one place; each is a named field with a unit."""

import dataclasses
import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from eventlane.errors import ConfigError
from eventlane.wording import did_you_mean

__all__ = ["Limits", "check_app", "checked_options", "number"]

T = TypeVar("T")

_COUNT_MAX = 10**12
"""No limit counts further: a database holds it, and a queue."""
_DISK_BYTES_MIN = 1_048_576
"""An empty file takes more than half of it."""


def number(
    where: str,
    value: object,
    *,
    least: float,
    most: float = math.inf,
    whole: bool = False,
    hint: str = "",
) -> None:
    """Refuse what is no number of this size; infinity is none.

    Raises:
        ConfigError: It is none; `where` names the option.
    """
    kinds = int if whole else int | float
    is_one = isinstance(value, kinds) and not isinstance(value, bool)
    size: Any = value
    if not is_one or not least <= size <= most or size == math.inf:
        kind = "a whole number" if whole else "a number"
        bound = f"at most {most:g}" if is_one and size > most else f"{least:g} or more"
        raise ConfigError(f"{where}={value!r}): expected {kind}, {bound}.{hint}")


def checked_options(cls: type[T]) -> type[T]:
    """Make a class refuse an option that it does not have with a `ConfigError` that helps."""
    original = cls.__init__
    known = [name for name in inspect.signature(original).parameters if name != "self"]

    @functools.wraps(original)
    def checked(self: T, *args: object, **options: object) -> None:
        for option in options:
            if option not in known:
                raise ConfigError(
                    f"{cls.__name__}({option}=…): there is no such option. "
                    f"{did_you_mean(option, known)}"
                )
        original(self, *args, **options)

    # The signature that type checkers see is the class's own; only a call's names are looked at.
    setattr(cls, "__init__", checked)
    return cls


@checked_options
@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What may grow, and how far. All are per process unless they say otherwise."""

    span_max: int = 10_000
    """Offsets between a partition's watermark and the last event taken."""
    hold_s_max: float = 30.0
    """A retry that is due later than this is parked; until then it waits in memory."""
    settled_bytes_max: int = 65_536
    """The settled offsets above a watermark, as written; beyond it held events are parked."""
    parked_lanes_max: int = 20_000
    """Parked lanes of a partition that are kept in memory; the others are looked up."""
    parked_per_key_max: int = 1_000
    """Events parked in one lane; at this bound its partition stops, and nothing is dropped."""
    drain_s: float = 30.0
    """How long running handlers may go on when handling stops."""
    lease_s: float = 10.0
    """A process that shows no sign of life for so long loses its partitions."""
    stall_s_max: float = 5.0
    """An event loop that does not turn for so long stops the signs of life."""
    stuck_s: float = 300.0
    """A handler that runs on for so long after its timeout makes handling end with an error."""
    progress_s_max: float = 60.0
    """A partition with waiting events that makes no progress for so long: `/ready` says 503."""
    crashes_max: int = 3
    """An event that kills its process so often, while it runs alone there, is dead."""
    replays_max: int = 10
    """How often one dead letter may be replayed. That of the app that handles its group holds,
    whoever asks."""
    absent_s: float = 86_400.0
    """A group without a live member for so long is called absent."""
    retry_tokens_max: int = 1_000
    """Tokens for delayed retries, per group and process."""
    retry_tokens_per_s: float = 10.0
    """Tokens that time earns; a success earns one."""
    retry_token_cost: int = 10
    """Tokens that a delayed retry costs; without them it waits longer, and never dies of it."""
    breaker_runs: int = 100
    """A group's breaker looks at so many runs back."""
    breaker_failure_ratio: float = 0.8
    """It opens when this share of them failed, ..."""
    breaker_lanes_min: int = 20
    """... in at least so many lanes."""
    event_bytes_max: int = 1_048_576
    """The size of one serialised event."""
    disk_bytes_max: int | None = None
    """What the whole file may hold; beyond it publishing is refused, settling never. None: all."""
    publish_queue_max: int = 100_000
    """Events between `publish` and the disk; beyond it publishing waits."""
    publish_timeout_s: float = 30.0
    """How long publishing waits for room in that queue."""
    batch_events_max: int = 8_000
    """Events in one transaction of `publish_many`."""
    fetch_events_max: int = 4_000
    """Events read from the log at once, per partition."""
    settle_events_max: int = 20_000
    """Outcomes that may wait for the next settlement."""
    settle_interval_s: float = 0.02
    """How long an outcome may wait for the next settlement."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            hint = f" Leave it out for the default, {field.default!r}."
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(
                    f"Limits({field.name}={value!r}): expected a number greater than 0.{hint}"
                )
            if field.type in (int, int | None):
                where = f"Limits({field.name}"
                number(where, value, least=1, most=_COUNT_MAX, whole=True, hint=hint)
        if self.stall_s_max >= self.lease_s:
            raise ConfigError(
                f"Limits(stall_s_max={self.stall_s_max}, lease_s={self.lease_s}): expected "
                "stall_s_max below lease_s. A stalled process must fall silent before its lease "
                "ends, or it would lose its partitions without notice."
            )
        if self.breaker_failure_ratio > 1:
            raise ConfigError(
                f"Limits(breaker_failure_ratio={self.breaker_failure_ratio}): expected a share of "
                "all runs, at most 1. At 1 it opens when all of them failed."
            )
        if self.breaker_lanes_min > self.breaker_runs:
            raise ConfigError(
                f"Limits(breaker_lanes_min={self.breaker_lanes_min}, breaker_runs="
                f"{self.breaker_runs}): expected no more lanes than runs. The last "
                f"{self.breaker_runs} runs cannot be in more lanes, so that it would never open."
            )
        if self.settle_interval_s >= self.lease_s:
            raise ConfigError(
                f"Limits(settle_interval_s={self.settle_interval_s}, lease_s={self.lease_s}): "
                "expected settle_interval_s far below lease_s. Outcomes that wait so long are lost "
                "with the process, and their events run again."
            )
        if self.disk_bytes_max is not None and self.disk_bytes_max < _DISK_BYTES_MIN:
            raise ConfigError(
                f"Limits(disk_bytes_max={self.disk_bytes_max}): expected {_DISK_BYTES_MIN:,} bytes "
                "(1 MiB) or more. An empty file takes more than half of that, and every publish "
                "would be refused. None is no limit."
            )
        if self.absent_s < self.lease_s:
            raise ConfigError(
                f"Limits(absent_s={self.absent_s}, lease_s={self.lease_s}): expected absent_s no "
                "shorter than lease_s. Until then a process may still come back, and what an "
                "absent group has not handled may be removed at a hard cap."
            )
        if self.retry_token_cost > self.retry_tokens_max:
            raise ConfigError(
                f"Limits(retry_token_cost={self.retry_token_cost}, retry_tokens_max="
                f"{self.retry_tokens_max}): expected a bucket that can pay for one retry."
            )


def check_app(url: object, limits: object, middleware: object) -> None:
    """Refuse options of an app that are something else.

    Raises:
        ConfigError: One is; it is named.
    """
    if not isinstance(url, str):
        raise ConfigError(f"App({url!r}): expected a URL, as in 'embedded:./data'.")
    if not isinstance(limits, Limits | None):
        raise ConfigError(f"App(limits={limits!r}): expected Limits(…).")
    layers: Any = middleware
    if not isinstance(layers, list | tuple) or not all(map(callable, cast("list[Any]", layers))):
        raise ConfigError(f"App(middleware={middleware!r}): expected functions, in a list.")
