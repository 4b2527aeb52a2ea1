"""When nothing more happens by itself: by the account of all processes, not only of this one."""

from collections.abc import Awaitable, Callable, Sequence

from eventlane.account import Status
from eventlane.broker import Broker
from eventlane.clock import Clock, VirtualClock, yield_to_loop
from eventlane.dispatch import Dispatcher

__all__ = ["still_open", "until_idle"]


async def until_idle(
    dispatchers: Sequence[Dispatcher],
    broker: Broker,
    clock: Clock,
    moved: Callable[[], Awaitable[None]],
) -> None:
    """Wait until the groups are idle; a test's clock is advanced to the next due retry.

    A quiet dispatcher is not enough: what was published a moment ago may not have reached it, and
    other processes may be at work. So the durable account has the last word.
    """
    await yield_to_loop()  # A dispatcher that has just begun learns only now what it owns.
    while True:
        if all(each.is_quiet for each in dispatchers):
            due = [ms for each in dispatchers if (ms := each.next_due_ms) is not None]
            if due and isinstance(clock, VirtualClock):
                clock.advance_to(min(due))
            # Asked twice: a replay may come and go while the account is read, and what was parked
            # behind it be running then.
            elif (
                not due
                and _nothing_is_open(dispatchers, await broker.status())
                and all(each.is_quiet for each in dispatchers)
            ):
                return
        await moved()


def _nothing_is_open(dispatchers: Sequence[Dispatcher], status: Status) -> bool:
    for dispatcher in dispatchers:
        group = status.groups[dispatcher.plan.name]
        # Whether it is paused, the account says: a resume may not have reached the dispatcher yet.
        if group.paused is not None:
            continue
        # These go on only with another process, or an operator.
        waits = sum(
            each.open for each in group.partitions if each.is_cut or each.waits_for is not None
        )
        if group.pending or (group.open > waits and not dispatcher.is_blocked):
            return False
    return True


def still_open(status: Status) -> str:
    """What keeps the groups from being idle, in words."""
    parts = [
        f"group {name!r} has {group.waiting} waiting, {group.in_flight} in flight, "
        f"{group.held} held, {group.parked} parked, {group.pending} commands pending"
        for name, group in status.groups.items()
        if group.open or group.pending or group.parked
    ]
    return "; ".join(parts) or "handlers are still running"
