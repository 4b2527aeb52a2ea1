"""Rates: how many runs start per second, of a group or of all that name a dependency."""

import asyncio
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from eventlane import (
    App,
    Batch,
    ConfigError,
    Context,
    Dependency,
    Limits,
    Retry,
    StorageError,
    event,
)
from eventlane.broker import Broker
from eventlane.clock import yield_to_loop
from eventlane.rate import EXPIRY_S, Permits
from eventlane.testing import ManualClock
from eventlane.testing.passing import PassingBroker
from eventlane.testing.stage import until

PATIENCE_S = 10.0


@event(topic="rated", key="key", name="rated")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int = 0


@event(topic="free", key="key", name="free")
class Other(msgspec.Struct, frozen=True):
    key: str


class Runs:
    """When runs started, in ms since the first."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.all: list[tuple[int, str, int, int]] = []

    def note(self, step: Step, ctx: Context[Any]) -> None:
        self.all.append((self.clock.now_ms(), step.key, step.number, ctx.attempt))

    @property
    def gaps_ms(self) -> list[int]:
        return [later[0] - earlier[0] for earlier, later in pairwise(self.all)]

    def numbers(self, key: str) -> list[int]:
        return [number for _, own, number, _ in self.all if own == key]


def steps(keys: str, count: int) -> list[Step]:
    return [Step(key, number) for number in range(count) for key in keys]


# --- permits ----------------------------------------------------------------------------------


def test_permits_become_usable_one_after_the_other() -> None:
    permits = Permits(50)
    permits.add(10.0, 5)
    assert [permits.usable(10.0 + at / 1000) for at in (-1, 0, 19, 20, 80, 200)] == [
        *(0, 1, 1, 2, 5, 5)
    ]
    assert all(permits.take(10.08) for _ in range(5))
    assert not permits.take(10.08)


def test_a_permit_that_was_not_used_expires_so_that_no_burst_piles_up() -> None:
    permits = Permits(50)
    permits.add(10.0, 5)
    assert permits.usable(10.05 + EXPIRY_S) == 2
    assert permits.usable(11.0) == 0
    assert permits.next_s(11.0) is None


def test_permits_say_when_the_next_one_is_usable_and_when_it_expires() -> None:
    permits = Permits(10)
    permits.add(1.0, 1)
    assert permits.next_s(0.5) == 1.0
    expires_s = permits.next_s(1.1)
    assert expires_s is not None
    assert expires_s == pytest.approx(1.0 + EXPIRY_S, abs=1e-5)
    assert permits.next_s(expires_s) is None


def test_a_permit_that_waits_for_its_user_does_not_hide_the_next_one() -> None:
    permits = Permits(10)
    permits.add(1.0, 3)
    assert permits.next_s(1.05) == pytest.approx(1.1)


@pytest.mark.parametrize(("rate_per_s", "count"), [(0.01, 1), (10, 1), (15, 2), (1000, 100)])
def test_about_a_tenth_of_a_second_is_reserved_at_once(rate_per_s: float, count: int) -> None:
    permits = Permits(rate_per_s)
    assert permits.count_max == count
    assert permits.is_short(0.0)
    permits.add(0.0, count)
    assert not permits.is_short(0.0)


# --- through an app ---------------------------------------------------------------------------


async def test_a_group_starts_no_more_runs_than_its_rate_and_keeps_the_order_of_keys() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=3)

    @app.subscribe(Step, group="g", rate_per_s=10)
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)

    async with app:
        await app.publish_many(steps("abcd", 5))
        await app.run_until_idle(PATIENCE_S)
        assert runs.gaps_ms == [100] * 19
        assert [runs.numbers(key) for key in "abcd"] == [[*range(5)]] * 4
        assert {attempt for *_, attempt in runs.all} == {1}
        assert (await app.status()).groups["g"].done == 20


async def test_the_broker_is_asked_only_while_something_waits() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)

    @app.subscribe(Step, group="g", rate_per_s=40)
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)

    async with app:
        app._broker = broker = Silent(app._connected)
        broker.refuses = False
        async with app.handling():
            await until(lambda: bool(app._dispatchers[0].partitions), "a partition")
            assert broker.asked == 0
        await app.publish_many(steps("ab", 10))
        await app.run_until_idle(PATIENCE_S)
        assert len(runs.all) == 20
        assert broker.asked <= 6, "four permits at once, twenty runs, and one for the last"


async def test_at_a_high_rate_no_window_has_more_than_the_rate_and_the_burst() -> None:
    runs = Runs()
    limits = Limits(settle_interval_s=0.001)
    app = App("embedded::memory:", clock=runs.clock, partitions=2, limits=limits)

    @app.subscribe(Step, group="g", rate_per_s=300)
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)

    async with app:
        await app.publish_many(Step(f"k{number}") for number in range(600))
        await app.run_until_idle(PATIENCE_S)
    at_ms = [at for at, *_ in runs.all]
    assert len(at_ms) == 600
    assert at_ms[-1] - at_ms[0] <= 2_010, "the rate is used"
    for first in range(0, 600, 7):
        within = sum(at_ms[first] <= each < at_ms[first] + 500 for each in at_ms)
        assert within <= 300 * (0.5 + EXPIRY_S) + 1


async def test_retries_count() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)

    @app.subscribe(Step, group="g", rate_per_s=2, retry=Retry(attempts=3, immediate=2))
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)
        if ctx.attempt < 3:
            raise RuntimeError

    async with app:
        await app.publish_many(steps("ab", 1))
        await app.run_until_idle(PATIENCE_S)
    assert len(runs.all) == 6
    assert min(runs.gaps_ms) == 500


@pytest.mark.parametrize("lanes", ["apart", "together"])
async def test_each_event_of_a_list_counts_also_those_that_run_again_alone(lanes: Any) -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)
    failed = False

    @app.subscribe(Step, group="g", rate_per_s=100, batch=Batch(5, lanes=lanes))
    async def handle(events: list[Step], contexts: list[Context]) -> None:
        nonlocal failed
        for step, ctx in zip(events, contexts, strict=True):
            runs.note(step, ctx)
        if len(events) > 1 and not failed:
            failed = True
            raise RuntimeError

    async with app:
        await app.publish_many(steps("abcdefgh", 5))
        await app.run_until_idle(PATIENCE_S)
        assert (await app.status()).groups["g"].done == 40
    assert [sorted(set(runs.numbers(key))) for key in "abcdefgh"] == [[*range(5)]] * 8
    took_s = (runs.all[-1][0] - runs.all[0][0]) / 1000
    assert len(runs.all) <= 100 * (took_s + EXPIRY_S) + 1
    assert took_s >= 0.2


async def test_what_joins_a_list_from_behind_its_events_counts() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)

    @app.subscribe(Step, group="g", rate_per_s=5, batch=Batch(10, lanes="together"))
    async def handle(events: list[Step], contexts: list[Context]) -> None:
        for step, ctx in zip(events, contexts, strict=True):
            runs.note(step, ctx)

    async with app:
        await app.publish_many(steps("a", 20))
        await app.run_until_idle(PATIENCE_S)
    assert runs.numbers("a") == [*range(20)]
    assert runs.all[-1][0] - runs.all[0][0] >= (20 - 1) * 200 - EXPIRY_S * 1000


async def test_the_clock_of_a_test_passes_over_no_permit_to_a_later_retry() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)

    @app.subscribe(Step, group="g", rate_per_s=10, retry=Retry(attempts=2, delay_s=20, immediate=0))
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)
        if step.key == "a" and ctx.attempt == 1:
            raise RuntimeError

    async with app:
        await app.publish_many(steps("abcd", 1))
        await app.run_until_idle(PATIENCE_S)
    assert [key for _, key, *_ in runs.all] == ["a", "b", "c", "d", "a"]
    assert runs.gaps_ms[:3] == [100] * 3


async def test_two_groups_share_the_rate_of_a_dependency_and_both_go_on() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=2)
    mail = Dependency("mail", rate_per_s=5)
    groups: list[str] = []

    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)
        groups.append(ctx.group)

    for group in ("one", "two"):
        app.subscribe(Step, group=group, dependencies=[mail])(handle)

    async with app:
        await app.publish_many(steps("abc", 4))
        await app.run_until_idle(PATIENCE_S)
    assert len(runs.all) == 24
    assert min(runs.gaps_ms) == 200
    assert 3 <= groups[:12].count("one") <= 9, "neither starves"


@pytest.mark.parametrize("how", ["paused", "slow"])
async def test_a_group_that_can_start_nothing_leaves_the_rate_to_the_others(how: str) -> None:
    clock = ManualClock()
    mail = Dependency("mail", trips_on=(), rate_per_s=20)
    app = App("embedded::memory:", clock=clock, partitions=2)
    hangs = asyncio.Event()
    ran = 0

    @app.subscribe(Step, group="still", dependencies=[mail], concurrency=1)
    async def stand(_step: Step, _ctx: Context) -> None:
        if how == "slow":
            await hangs.wait()

    # It does not need the rate, so that the group takes from the log though that is used up.
    @app.subscribe(Other, group="still")
    async def pass_by(_other: Other, _ctx: Context) -> None: ...

    @app.subscribe(Step, group="busy", dependencies=[mail])
    async def work(_step: Step, _ctx: Context) -> None:
        nonlocal ran
        ran += 1

    async with app:
        await app.publish_many(Step(f"k{number}") for number in range(80))
        async with app.handling():
            await until(lambda: ran > 0, "a first run")
            if how == "paused":
                await app.pause("still", reason="x")
            for _ in range(40):
                clock.advance(0.05)
                for _ in range(200):
                    await yield_to_loop()
            # In 2 s at 20 a second; without the other one's share it was a third of them.
            assert 34 <= ran <= 46
            hangs.set()
            if how == "paused":
                await app.resume("still")
            clock.advance(0.2)
            await app.run_until_idle(timeout_s=PATIENCE_S)
        account = (await app.status()).groups["still"]
        assert (account.done, account.open) == (80, 0)


async def test_the_slower_of_two_rates_is_kept_and_used_though_their_permits_never_meet() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1)
    mail = Dependency("mail", rate_per_s=1)

    @app.subscribe(Step, group="one", dependencies=[mail], rate_per_s=1)
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)

    async with app:
        await app._connected.reserve("dependency:mail", 2, 1)  # Half a step later than the group's.
        await app.publish_many(steps("ab", 3))
        await app.run_until_idle(PATIENCE_S)
    assert runs.numbers("a") == [0, 1, 2]
    assert min(runs.gaps_ms) >= 1000 - 1
    assert max(runs.gaps_ms) <= 1500


async def test_what_does_not_need_the_dependency_does_not_wait_for_its_rate() -> None:
    runs = Runs()
    app = App("embedded::memory:", clock=runs.clock, partitions=1, limits=Limits(span_max=20))
    others: list[int] = []

    @app.subscribe(Step, group="g", dependencies=[Dependency("mail", rate_per_s=1)])
    async def handle(step: Step, ctx: Context) -> None:
        runs.note(step, ctx)

    @app.subscribe(Other, group="g")
    async def look(_event: Other, _ctx: Context) -> None:
        others.append(runs.clock.now_ms())

    async with app:
        start_ms = runs.clock.now_ms()
        await app.publish_many(
            each for number in range(30) for each in (Step(f"k{number}"), Other(f"o{number}"))
        )
        await app.run_until_idle(PATIENCE_S)
        assert (await app.status()).groups["g"].done == 60
    assert others == [start_ms] * 30
    assert len(runs.all) == 30
    assert min(runs.gaps_ms) == 1000


async def test_a_stop_and_a_pause_do_not_wait_for_a_rate_and_status_says_who_waits() -> None:
    app = App("embedded::memory:", partitions=1)
    started: list[str] = []

    @app.subscribe(Step, group="mail", rate_per_s=0.01, timeout_s=5)
    async def handle(step: Step, _ctx: Context) -> None:
        started.append(step.key)

    async def blocked() -> bool:
        account = (await app.status()).groups["mail"]
        return account.blocked == ("group mail waits for its rate_per_s=0.01",)

    async with app:
        async with asyncio.timeout(5):
            async with app.handling():
                await app.publish_many(steps("ab", 2))
                await until(lambda: len(started) == 1, "one run")
                await until(blocked, "status to say what is waited for")
                await app.pause("mail", actor="a", reason="a pause")
                await app.resume("mail", actor="a")
        account = (await app.status()).groups["mail"]
        assert (account.done, account.open) == (1, 3)


class Silent(PassingBroker):
    """Does not give permits out."""

    def __init__(self, real: Broker) -> None:
        super().__init__(real)
        self.asked = 0
        self.refuses = True

    async def reserve(self, name: str, rate_per_s: float, count: int) -> int:
        self.asked += 1
        if self.refuses:
            raise StorageError("the disk is full")
        return await super().reserve(name, rate_per_s, count)


async def test_nothing_runs_unlimited_while_the_broker_cannot_be_asked() -> None:
    app = App("embedded::memory:", partitions=1)
    started: list[str] = []

    @app.subscribe(Step, group="mail", rate_per_s=1000)
    async def handle(step: Step, _ctx: Context) -> None:
        started.append(step.key)

    async with app:
        app._broker = broker = Silent(app._connected)
        async with app.handling():
            await app.publish_many(steps("a", 3))
            await until(lambda: broker.asked >= 3, "it to be asked again")
            assert not started
            broker.refuses = False
            await until(lambda: len(started) == 3, "all to run")


async def test_a_group_that_is_removed_leaves_no_rate_behind() -> None:
    clock = ManualClock()
    app = App("embedded::memory:", clock=clock, partitions=1)
    app.subscribe(Step, group="g", rate_per_s=0.01)(_takes)
    async with app:
        await app.publish(Step("a"))
        await app.run_until_idle(PATIENCE_S)
        await app.remove_group("g", reason="over", typed_name="g")
        assert await app._connected.reserve("group:g", 0.01, 1) == clock.now_ms()


@pytest.mark.parametrize("rate_per_s", [0, -1, True, "10", float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate_per_s: Any) -> None:
    app = App("embedded::memory:")
    with pytest.raises(ConfigError, match=r"rate_per_s=.*expected a number, 0.001 or more"):
        app.subscribe(Step, group="g", rate_per_s=rate_per_s)(_takes)
    with pytest.raises(ConfigError, match=r"rate_per_s=.*expected a number, 0.001 or more"):
        Dependency("mail", rate_per_s=rate_per_s)


async def test_rates_that_differ_are_refused() -> None:
    app = App("embedded::memory:")
    app.subscribe(Step, group="g", rate_per_s=5)(_takes)
    app.subscribe(Other, group="g", rate_per_s=6)(_takes)
    async with app:
        with pytest.raises(ConfigError, match=r"two values for rate_per_s: 5 .* and 6"):
            await app.run_until_idle()
    app = App("embedded::memory:")
    for kind, rate_per_s in ((Step, 5), (Other, 6)):
        mail = Dependency("mail", rate_per_s=rate_per_s)
        app.subscribe(kind, group="g", dependencies=[mail])(_takes)
    async with app:
        with pytest.raises(ConfigError, match="dependency 'mail' has two settings"):
            await app.run_until_idle()


async def _takes(_event: Any, _ctx: Context) -> None: ...
