"""What failures cost others, and whether retries are on time.

Of a thousand keys one in ten fails. Half of these are poison: each run of their events raises, so
that the first of a key dies and the others are parked behind it. The other half are flaky: each
event raises once and is handled at its retry, so that all later ones of its key wait for that.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count

from benchmarks.bench_consume import CONCURRENCY, WAIT_S
from benchmarks.measuring import (
    Benchmark,
    Result,
    Settings,
    compared,
    in_turns,
    now_s,
    plain,
)
from benchmarks.orders import Order, orders
from eventlane import App, Context, Limits, Retry, RetryLater
from eventlane.account import GroupStatus

__all__ = ["BENCHMARKS"]

EVENTS = 50_000
POLICY = Retry(attempts=3, delay_s=0.05, immediate=0)
NEVER_DRY = 1_000_000
"""Tokens of the retry budget, which would spread so many retries over a longer time."""
LIMITS = Limits(retry_tokens_per_s=100_000, breaker_runs=100_000)
"""By default the retries that are left at the end, when little else runs, would be taken for
an outage, and spread over minutes.
"""


class NoStock(Exception):
    """What failing handlers raise."""


def share_of(order: Order) -> int:
    """0: poison, 1: flaky, the others are healthy; the same for all events of a key."""
    return int(order.customer.rpartition("-")[2]) % 20


class Mixed:
    """A handler that fails for some keys, and knows when all events of the others were handled."""

    def __init__(self, healthy: int, *, fails: bool, wait: Callable[[], Awaitable[None]]) -> None:
        self._left = healthy
        self._fails = fails
        self._wait = wait
        self.healthy = asyncio.Event()
        self.last_s = 0.0
        self.runs = Counter[str]()

    async def handle(self, event: Order, ctx: Context) -> None:
        share = share_of(event)
        await self._wait()
        if share > 1:
            self._left -= 1
            if not self._left:
                self.last_s = now_s()
                self.healthy.set()
        elif self._fails:
            self.runs["failing"] += 1
            if share == 0 or ctx.attempt == 1:
                self.runs["failed"] += 1
                raise NoStock(event.sku)


async def wait_a_little() -> None:
    await asyncio.sleep(WAIT_S)


async def wait_for_nothing() -> None:
    pass


class _Round:
    """The last one with failures, and what came of it."""

    note = ""

    def keep(self, mixed: Mixed, status: GroupStatus, took_s: float) -> None:
        self.note = (
            f"Runs for failing keys: {mixed.runs['failing']:,}, of which {mixed.runs['failed']:,} "
            f"failed. In the end {status.done:,} done, {status.dead:,} dead, {status.parked:,} "
            f"parked, after {took_s:.2f} s."
        )


def failing_keys(
    name: str, wait: Callable[[], Awaitable[None]], baseline: str, target: str | None
) -> Benchmark:
    async def run(settings: Settings) -> list[Result]:
        published = orders(settings.events(EVENTS))
        healthy = sum(share_of(each) > 1 for each in published)
        url = f"embedded:{settings.directory / name}"
        async with App(url) as app:
            await app.publish_many(published)
        groups = map("group-{}".format, count())
        last = _Round()

        async def until_healthy(*, fails: bool) -> float:
            mixed, group = Mixed(healthy, fails=fails, wait=wait), next(groups)
            app = App(url, limits=LIMITS)
            app.subscribe(Order, group=group, retry=POLICY, concurrency=CONCURRENCY)(mixed.handle)
            async with app:
                start_s = now_s()
                async with app.handling():
                    await mixed.healthy.wait()
                    await app.run_until_idle(timeout_s=60)
                took_s = now_s() - start_s
                status = (await app.status()).groups[group]
            if status.open or not status.balances:
                raise AssertionError(f"{group}: expected all events accounted for, got {status}")
            if fails:
                last.keep(mixed, status, took_s)
            return mixed.last_s - start_s

        turns = await in_turns(
            lambda: until_healthy(fails=True),
            lambda: until_healthy(fails=False),
            settings.repeats,
        )
        result = compared(name, turns, healthy, baseline=baseline, target=target, note=last.note)
        return [result]

    return Benchmark(name=name, rows=(name,), run=run)


# --- retries on time --------------------------------------------------------------------------

RETRIES = 400
DELAYS_S = (0.05, 2.0)
NS_PER_MS = 1_000_000


class Punctual:
    """A handler that asks for one retry of each event, and notes how late each of them starts.

    Late is by the wall clock with all its digits; early by the one that retries are kept in, which
    has milliseconds.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._not_before_ns: dict[str, int] = {}
        self.late_ms: list[float] = []
        self.early: list[str] = []
        self.all = asyncio.Event()

    async def handle(self, event: Order, ctx: Context) -> RetryLater | None:
        if ctx.attempt == 1:
            delay_s = delay_of(event)
            self._not_before_ns[event.order_id] = time.time_ns() + round(delay_s * 1e9)
            return RetryLater(delay_s)
        now_ns, not_before_ns = time.time_ns(), self._not_before_ns[event.order_id]
        if now_ns < not_before_ns:
            self.early.append(event.order_id)
        self.late_ms.append((now_ns - not_before_ns) / NS_PER_MS)
        if len(self.late_ms) == self._expected:
            self.all.set()
        return None


def delay_of(order: Order) -> float:
    """Spread over the delays, in no order."""
    first, last = DELAYS_S
    return first + (last - first) * (order.placed_ms * 7919 % 1000) / 1000


async def timers(events: list[Order]) -> list[float]:
    """How late a plain timer is for each of them."""
    late_ms: list[float] = []

    async def wait(delay_s: float) -> None:
        not_before_ns = time.time_ns() + round(delay_s * 1e9)
        await asyncio.sleep(delay_s)
        late_ms.append((time.time_ns() - not_before_ns) / NS_PER_MS)

    await asyncio.gather(*(wait(delay_of(each)) for each in events))
    return late_ms


async def retried(url: str, group: str, events: list[Order], limits: Limits) -> list[float]:
    punctual = Punctual(len(events))
    app = App(url, limits=limits)
    policy = Retry(attempts=2)
    app.subscribe(Order, group=group, retry=policy, concurrency=CONCURRENCY)(punctual.handle)
    async with app:
        async with app.handling():
            async with asyncio.timeout(60):
                await punctual.all.wait()
        status = (await app.status()).groups[group]
    if punctual.early:
        raise AssertionError(f"{group}: expected no early retry, got {punctual.early}")
    if status.done != len(events):
        raise AssertionError(f"{group}: expected {len(events)} events done, got {status}")
    return punctual.late_ms


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def on_time(settings: Settings) -> list[Result]:
    events = [
        Order(f"o-{number}", f"c-{number}", "sku", 1, 1.0, number)
        for number in range(settings.events(RETRIES))
    ]
    url = f"embedded:{settings.directory / 'retries'}"
    async with App(url) as app:
        await app.publish_many(events)
    # That all are to be retried is no outage here.
    held = Limits(retry_tokens_max=NEVER_DRY, breaker_runs=100_000)
    kinds = {"held": held, "parked": replace(held, hold_s_max=DELAYS_S[0] / 2)}
    late_ms: dict[str, list[list[float]]] = {"held": [], "parked": [], "timer": []}
    for number in range(settings.repeats):
        for kind, limits in kinds.items():
            late_ms[kind].append(await retried(url, f"{kind}-{number}", events, limits))
        late_ms["timer"].append(await timers(events))
    results: list[Result] = []
    for kind in kinds:
        for name, share, target in (("p50", 0.5, "<= 50"), ("p99", 0.99, None)):
            results.append(
                plain(
                    f"retry_{kind}_{name}",
                    [percentile(each, share) for each in late_ms[kind]],
                    unit="ms late",
                    baseline=f"{name} of plain timers in the event loop, ms",
                    baseline_values=[percentile(each, share) for each in late_ms["timer"]],
                    target=target,
                    note=f"{len(events)} retries, due after {DELAYS_S[0]:g} to {DELAYS_S[1]:g} s. "
                    f"The earliest: {min(map(min, late_ms[kind])):.2f} ms; "
                    f"the latest: {max(map(max, late_ms[kind])):.1f} ms.",
                )
            )
    return results


BENCHMARKS = [
    failing_keys(
        "failing_keys",
        wait_a_little,
        "the healthy keys while none fails; the handler waits for 1 ms",
        ">= 0.8",
    ),
    failing_keys(
        "failing_keys_trivial",
        wait_for_nothing,
        "the healthy keys while none fails; the handler does nothing",
        None,
    ),
    Benchmark(
        name="retries",
        rows=("retry_held_p50", "retry_held_p99", "retry_parked_p50", "retry_parked_p99"),
        run=on_time,
    ),
]
