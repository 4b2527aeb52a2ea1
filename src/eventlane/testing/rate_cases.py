"""Cases: permits of rates, which all processes share."""

import random
from itertools import pairwise

from eventlane.testing.clock import ManualClock
from eventlane.testing.stage import Factory

_NAME = "dependency:mail"
_HOUR_MS = 3_600_000


async def permits_of_all_processes_are_spaced_by_the_rate(make: Factory) -> None:
    """Whoever asks, and for how many: no two permits are closer than 1/rate."""
    clock, chance = ManualClock(), random.Random(1)
    moments: list[float] = []
    async with make(clock=clock) as one, make(clock=clock) as other:
        for _ in range(50):
            count = chance.randrange(1, 5)
            broker = chance.choice((one, other))
            first_ms = await broker.reserve(_NAME, 30, count)
            assert first_ms >= clock.now_ms(), "no permit is of the past, so that none pile up"
            moments += [first_ms + each * 1000 / 30 for each in range(count)]
            clock.advance(chance.choice((0, 0.05, 0.1)))
    moments.sort()
    closest_ms = min(late - early for early, late in pairwise(moments))
    assert closest_ms > 1000 / 30 - 1.001, "less than the step, but for what a whole ms rounds off"


async def permits_of_other_names_are_apart(make: Factory) -> None:
    """A rate that is used up holds up no other one."""
    clock = ManualClock()
    async with make(clock=clock) as broker:
        await broker.reserve(_NAME, 0.01, 1)
        assert await broker.reserve("group:mail", 0.01, 1) == clock.now_ms()


async def who_dies_loses_no_more_than_the_permits_that_it_had(make: Factory) -> None:
    """Permits that nobody uses are over at their time: nothing is to be given back."""
    clock = ManualClock()
    async with make(clock=clock) as one:
        await one.reserve(_NAME, 10, 5)
    async with make(clock=clock) as other:
        assert await other.reserve(_NAME, 10, 1) == clock.now_ms() + 500
        clock.advance(60.0)
        assert await other.reserve(_NAME, 10, 1) == clock.now_ms()


async def a_clock_that_is_set_back_holds_up_no_rate(make: Factory) -> None:
    """What was reserved by a clock that was an hour ahead takes an hour of nobody."""
    ahead = ManualClock()
    behind = ManualClock(ahead.now_ms() - _HOUR_MS)
    async with make(clock=ahead) as broker:
        await broker.reserve(_NAME, 10, 3)
    async with make(clock=behind) as broker:
        assert await broker.reserve(_NAME, 10, 1) == behind.now_ms() + 300
        assert await broker.reserve(_NAME, 10, 1) == behind.now_ms() + 400


async def a_rate_that_is_raised_waits_for_no_permit_of_the_lower_one(make: Factory) -> None:
    """So many permits are reserved, and they take the time of the rate that is in force."""
    clock = ManualClock()
    async with make(clock=clock) as broker:
        await broker.reserve(_NAME, 0.01, 1)
        assert await broker.reserve(_NAME, 100, 1) == clock.now_ms() + 10
