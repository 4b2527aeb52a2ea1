"""A handler as it was declared, and a group as the sum of its handlers' declarations."""

import inspect
import re
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import (
    Any,
    Literal,
    Protocol,
    Required,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from eventlane.breaker import Dependency
from eventlane.config import Limits, number
from eventlane.errors import ConfigError
from eventlane.event import EventType
from eventlane.failure import HOST
from eventlane.handler import Batch, Context
from eventlane.outcome import LaneOnDead, Outcome
from eventlane.retry import Retry
from eventlane.settlement import GroupSpec
from eventlane.wording import did_you_mean, near

__all__ = [
    "BatchHandlerOptions",
    "GroupPlan",
    "HandlerOptions",
    "Ordering",
    "Subscription",
    "Takes",
    "caller",
    "check_drain",
    "check_group",
    "declared",
    "dependencies_of",
    "plan_groups",
]

Ordering = Literal["key", "partition", "none"]
E = TypeVar("E")


class HandlerOptions(TypedDict, total=False):
    """The options of `App.subscribe`."""

    group: Required[str]
    retry: Retry
    timeout_s: float | None
    dependencies: Sequence[Dependency]
    concurrency: int
    ordering: Ordering
    on_dead: LaneOnDead
    start: Literal["first", "now"]
    rate_per_s: float | None
    topic: str | None


class BatchHandlerOptions(HandlerOptions, total=False):
    """The options of `App.subscribe` for a handler of lists."""

    batch: Batch


class Takes(Protocol[E]):
    """Takes a handler of such events, and returns it."""

    @overload
    def __call__(
        self, function: Callable[[E, Context[Any]], Awaitable[Outcome | None]], /
    ) -> Callable[[E, Context[Any]], Awaitable[Outcome | None]]: ...
    @overload
    def __call__(
        self, function: Callable[[E, Context[Any]], Outcome | None], /
    ) -> Callable[[E, Context[Any]], Outcome | None]: ...


_GROUP = re.compile(r"[A-Za-z0-9_-]{1,200}")
_EXAMPLES = {
    "retry": "retry=Retry(attempts=3)",
    "batch": "batch=Batch(100)",
    "timeout_s": "timeout_s=5",
}
_OF_GROUP = ("concurrency", "ordering", "on_dead", "start", "rate_per_s")

_ON_DEAD: dict[str, LaneOnDead] = {"key": "park", "partition": "stop", "none": "continue"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "ordering": ("key", "partition", "none"),
    "on_dead": ("park", "continue", "stop"),
    "start": ("first", "now"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription:
    """One handler of one group."""

    function: Callable[..., Any]
    event_types: tuple[EventType[Any], ...]
    topic: str | None
    """Read from here instead of the topic that the event type declares."""
    group: str
    retry: Retry
    timeout_s: float | None
    batch: Batch | None
    dependencies: tuple[Dependency, ...]
    """What it needs that can be out."""
    options: dict[str, Any]
    """The group options that it states: concurrency, ordering, on_dead, start, rate_per_s."""
    declared_at: str
    name: str = field(init=False)
    """The handler's name in dead letters."""
    is_async: bool = field(init=False)
    takes_tombstones: bool = field(init=False)

    def __post_init__(self) -> None:
        function = self.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        module = getattr(function, "__module__", "")
        object.__setattr__(self, "name", f"{module}.{name}" if module else name)
        object.__setattr__(self, "is_async", _is_async(function))
        self._check()
        object.__setattr__(self, "takes_tombstones", _takes_none(function))

    def _check(self) -> None:
        where = f"subscribe(group={self.group!r}) at {self.declared_at}"
        check_group(self.group, where)
        for option, value, kind in (
            ("retry", self.retry, Retry),
            ("batch", self.batch, Batch | None),
            ("timeout_s", self.timeout_s, int | float | None),
        ):
            if not isinstance(value, kind) or isinstance(value, bool):
                name = getattr(kind, "__name__", "") or str(kind)
                raise ConfigError(
                    f"{where}: {option}={value!r}: expected {name.split('.')[-1]}, as in "
                    f"{_EXAMPLES[option]}."
                )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(
                f"{where}: timeout_s={self.timeout_s!r}: expected seconds above 0, or None."
            )
        for option, value in self.options.items():
            if option == "concurrency":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ConfigError(
                        f"{where}: concurrency={value!r}: expected a number of lanes, 1 or more."
                    )
            elif option == "rate_per_s":
                hint = f" Declared at {self.declared_at}."
                number(f"subscribe(group={self.group!r}, rate_per_s", value, least=0.001, hint=hint)
            elif value not in _CHOICES[option]:
                raise ConfigError(
                    f"{where}: {option}={value!r}: expected one of "
                    f"{', '.join(map(repr, _CHOICES[option]))}.{near(str(value), _CHOICES[option])}"
                )
        _check_signature(self.function, self.name, batch=self.batch is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPlan:
    """A group: its handlers, and the options that hold for all of them."""

    name: str
    subscriptions: tuple[Subscription, ...]
    topics: tuple[str, ...]
    concurrency: int
    ordering: Ordering
    on_dead: LaneOnDead
    start: Literal["first", "now"]
    rate_per_s: float | None = None

    @property
    def types(self) -> tuple[tuple[str, str], ...]:
        """Topics and names of the event types that it handles."""
        return tuple(
            (each.topic or kind.topic.name, kind.name)
            for each in self.subscriptions
            for kind in each.event_types
        )

    def spec(self, app: str, limits: Limits) -> GroupSpec:
        """What a broker is told when this process joins it."""
        return GroupSpec(
            name=self.name,
            topics=self.topics,
            start=self.start,
            ordering=self.ordering,
            on_dead=self.on_dead,
            app=app,
            host=HOST,
            types=self.types,
            replays_max=limits.replays_max,
        )


def check_group(name: object, where: str) -> None:
    """Refuse what cannot be the name of a group.

    Raises:
        ConfigError: It cannot; `where` says who asked for it.
    """
    if not isinstance(name, str) or not _GROUP.fullmatch(name):
        raise ConfigError(
            f"{where}: expected a group name of 1 to 200 characters of A-Z a-z 0-9 _ -, got "
            f"{name!r}. It is a part of the names of dead-letter topics, between dots."
        )


def caller() -> str:
    """Where the function that calls this one was called from, as file:line."""
    frame = inspect.currentframe()
    outside = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    return "?" if outside is None else f"{outside.f_code.co_filename}:{outside.f_lineno}"


def declared(
    function: Callable[..., Any],
    event_types: tuple[EventType[Any], ...],
    options: Mapping[str, Any],
    *,
    declared_at: str,
) -> Subscription:
    """A subscription from the options of `App.subscribe`.

    Raises:
        ConfigError: An option is unknown or wrong, or the function is no such handler.
    """
    known = BatchHandlerOptions.__annotations__
    for option in options:
        if option not in known:
            raise ConfigError(
                f"subscribe({option}=…) at {declared_at}: there is no such option. "
                f"{did_you_mean(option, known)}"
            )
    if "group" not in options:
        raise ConfigError(
            f"subscribe() at {declared_at}: expected group=…, got none. A group handles each event "
            "once; give every independent consumer a name of its own."
        )
    return Subscription(
        function=function,
        event_types=event_types,
        topic=options.get("topic"),
        group=options["group"],
        retry=options.get("retry", Retry()),
        timeout_s=options.get("timeout_s"),
        batch=options.get("batch"),
        dependencies=_dependencies(options.get("dependencies", ()), declared_at),
        options={name: options[name] for name in _OF_GROUP if options.get(name) is not None},
        declared_at=declared_at,
    )


def _dependencies(given: object, where: str) -> tuple[Dependency, ...]:
    is_several = isinstance(given, list | tuple)
    several = cast("Sequence[object]", given) if is_several else (given,)
    for each in several:
        if not isinstance(each, Dependency):
            raise ConfigError(
                f"subscribe() at {where}: dependencies={given!r}: expected Dependency(…) objects "
                "in a list, as in dependencies=[Dependency('smtp', trips_on=OSError)]."
            )
    return tuple(cast("Sequence[Dependency]", several))


def dependencies_of(subscriptions: Sequence[Subscription]) -> dict[str, Dependency]:
    """All dependencies by name.

    Raises:
        ConfigError: Two of one name differ; the message names both places.
    """
    known: dict[str, tuple[Dependency, Subscription]] = {}
    for subscription in subscriptions:
        for each in subscription.dependencies:
            before, where = known.setdefault(each.name, (each, subscription))
            if before != each:
                raise ConfigError(
                    f"dependency {each.name!r} has two settings: {before} ({where.declared_at}) "
                    f"and {each} ({subscription.declared_at}). Make one object and share it."
                )
    return {name: dependency for name, (dependency, _) in known.items()}


def check_drain(subscriptions: Sequence[Subscription], drain_s: float) -> None:
    """Refuse handlers that may run for longer than the end of handling waits for them.

    Raises:
        ConfigError: There is one; it is named.
    """
    for each in subscriptions:
        if each.timeout_s is not None and each.timeout_s > drain_s:
            raise ConfigError(
                f"handler {each.name} ({each.declared_at}): timeout_s={each.timeout_s:g} with "
                f"Limits(drain_s={drain_s:g}): expected drain_s of at least the timeout. A stop "
                "would cancel handlers that still have time, and run their events again; raise "
                "drain_s, or lower the timeout."
            )


def plan_groups(subscriptions: Sequence[Subscription], *, cpus: int) -> dict[str, GroupPlan]:
    """Put the handlers of each group together.

    Raises:
        ConfigError: Two of a group contradict each other; the message names both.
    """
    groups: dict[str, list[Subscription]] = {}
    for subscription in subscriptions:
        groups.setdefault(subscription.group, []).append(subscription)
    return {name: _plan(name, members, cpus) for name, members in groups.items()}


def _plan(name: str, members: list[Subscription], cpus: int) -> GroupPlan:
    handled: dict[tuple[str, str], Subscription] = {}
    stated: dict[str, tuple[Any, Subscription]] = {}
    for member in members:
        for kind in member.event_types:
            key = (member.topic or kind.topic.name, kind.name)
            other = handled.setdefault(key, member)
            if other is not member:
                raise ConfigError(
                    f"group {name!r} has two handlers for {kind.name} on topic {key[0]!r}: "
                    f"{other.name} ({other.declared_at}) and {member.name} "
                    f"({member.declared_at}). A group handles an event once; give one of them a "
                    "group of its own."
                )
        for option, value in member.options.items():
            before, where = stated.setdefault(option, (value, member))
            if before != value:
                raise ConfigError(
                    f"group {name!r} has two values for {option}: {before!r} "
                    f"({where.declared_at}) and {value!r} ({member.declared_at}). It holds for "
                    "the whole group; state it once."
                )
    ordering: Ordering = stated["ordering"][0] if "ordering" in stated else "key"
    on_dead: LaneOnDead = stated["on_dead"][0] if "on_dead" in stated else _ON_DEAD[ordering]
    if on_dead == "park" and ordering != "key":
        raise ConfigError(
            f"group {name!r}: on_dead='park' with ordering={ordering!r}: expected ordering='key'. "
            "Only events of one key can be parked while others go on; choose 'continue' or 'stop'."
        )
    any_async = any(member.is_async for member in members)
    return GroupPlan(
        name=name,
        subscriptions=tuple(members),
        topics=tuple(sorted({topic for topic, _ in handled})),
        concurrency=stated["concurrency"][0]
        if "concurrency" in stated
        else (100 if any_async else min(32, cpus + 4)),
        ordering=ordering,
        on_dead=on_dead,
        start=stated["start"][0] if "start" in stated else "first",
        rate_per_s=stated["rate_per_s"][0] if "rate_per_s" in stated else None,
    )


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and callable(function):
        function = type(function).__call__  # an object that is called
    return inspect.iscoroutinefunction(function)


def _check_signature(function: Callable[..., Any], name: str, *, batch: bool) -> None:
    shape = "(events, contexts)" if batch else "(event, ctx)"
    expected = (
        f"expected a function that takes {shape}; sync or async. "
        "Take both, even if one of them is not used."
    )
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"handler {name}: {expected} Got {function!r}.")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"handler {name}: {expected} Got a generator: its body would never run. "
            "To publish from a handler call ctx.publish(event)."
        )
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        raise ConfigError(f"handler {name}: {expected} Got {name}{signature}.") from None


def _takes_none(function: Callable[..., Any]) -> bool:
    """Whether the first parameter is annotated `T | None`: such a handler gets tombstones."""
    try:
        hints = get_type_hints(function)
        first = next(iter(inspect.signature(function).parameters))
    except (NameError, TypeError, AttributeError, StopIteration):
        return False  # annotations are not needed, so ones that cannot be read are no error
    hint = hints.get(first)
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
