"""What becomes of a delivery once its handler has returned or raised, told to its lane."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from eventlane.budget import Budget
from eventlane.clock import Clock, loop_time
from eventlane.config import Limits
from eventlane.deadletter import (
    HandlerTimeout,
    ProcessDied,
    attempts_after,
    dead_letter,
    elapsed_ms,
)
from eventlane.errors import ConfigError, EventlaneError, NotFound, Undecodable
from eventlane.failure import Attempts, Disposition
from eventlane.guard import GroupGuard, Guard
from eventlane.handler import Delivery, Trouble
from eventlane.lanes import Lanes
from eventlane.notice import notice_of
from eventlane.outcome import DELAY_S_MAX, Dead, Done, Outcome, Pause, RetryLater, Skipped
from eventlane.retry import Retry, bounded, decide, in_force
from eventlane.routing import Route
from eventlane.subscription import GroupPlan, Subscription
from eventlane.telemetry import FailureKind, Telemetry
from eventlane.workers import Worker

__all__ = ["Concluder", "Returned"]


class Concluder:
    """Carries out outcomes. One per group and process."""

    def __init__(
        self,
        plan: GroupPlan,
        *,
        app: str,
        app_version: str | None,
        dlq_payload: bool,
        guard: GroupGuard,
        guards: Mapping[str, Guard],
        done_so_far: Callable[[], int],
        pause: Callable[[str], None],
        ensure_topic: Callable[[str], Awaitable[None]],
        telemetry: Telemetry,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`guard` stands before the group, `guards` before dependencies, by name."""
        self._pause = pause
        self._ensure_topic = ensure_topic
        self.telemetry = telemetry
        self._plan = plan
        self._app = app
        self._app_version = app_version
        self._dlq_payload = dlq_payload
        self._guard = guard
        self._guards = guards
        self._done_so_far = done_so_far
        self._clock = clock
        self._monotonic = loop_time()
        self._budget = Budget(
            tokens_max=limits.retry_tokens_max,
            per_s=limits.retry_tokens_per_s,
            cost=limits.retry_token_cost,
        )

    def undecodable(
        self, worker: Worker, delivery: Delivery, route: Route, error: Exception
    ) -> None:
        """The event could not be decoded: its handler has not run."""
        worker.handling = None
        worker.ended()
        for guard in route.guards:
            guard.withdraw(guard.breaker.trips)
        try:
            route.decode_in_words(delivery.record.value or b"")
        except Undecodable as in_words:
            error = in_words
        self.failed(worker, delivery, route.subscription, error, self._monotonic())

    def failed(
        self,
        worker: Worker,
        delivery: Delivery,
        subscription: Subscription | None,
        error: BaseException,
        started_s: float,
    ) -> None:
        """The handler raised: decide, and carry it out."""
        assert subscription is not None, "only what has a handler runs"
        duration_s = self._monotonic() - started_s
        delivery.published = None
        self.run_failed(worker, error)
        if self._is_outage(delivery, subscription, error):
            self.telemetry.failed(subscription, "outage")
            return
        if isinstance(error, Undecodable):
            kind: FailureKind = "undecodable"
        else:
            kind = "timeout" if isinstance(error, HandlerTimeout) else "error"
        self.telemetry.failed(subscription, kind)
        outcome = decide(
            error,
            delivery.attempt,
            subscription.retry,
            jitter=random.random(),
            elapsed_s=elapsed_ms(delivery, duration_s) / 1000,
        )
        policy, answer = in_force(error, subscription.retry)
        if answer is None or isinstance(answer, RetryLater):
            self._count_failure(delivery)
        ending = _Ending(policy, "permanent" if isinstance(answer, Dead) else "exhausted")
        if isinstance(error, Undecodable):
            ending = _Ending(policy, "undecodable")
        self._carry_out(delivery, outcome, error, duration_s, ending)

    async def missing(self, deliveries: Sequence[Delivery]) -> EventlaneError | None:
        """Why a topic cannot be had to which handlers of these published; None if all can."""
        try:
            for delivery in deliveries:
                for topic, _ in delivery.published or ():
                    await self._ensure_topic(topic)
        except (ConfigError, NotFound) as error:
            return error
        return None

    def run_failed(self, worker: Worker, error: BaseException) -> None:
        """A run failed that the group's breaker may have admitted."""
        if worker.admitted is not None:
            run, worker.admitted = worker.admitted, None
            self._guard.failed(run, error)

    def ended(self, worker: Worker) -> None:
        """A run has ended well, unless it was told otherwise."""
        if worker.admitted is not None:
            run, worker.admitted = worker.admitted, None
            self._guard.succeeded(run)

    def crashed(self, delivery: Delivery, subscription: Subscription, crashes: int) -> None:
        """Processes died while they handled nothing but this event: it is dead."""
        error = ProcessDied(
            f"{crashes} processes died while they handled this event and nothing else"
        )
        ending = _Ending(subscription.retry, "exhausted")
        self._dead(delivery, Dead(), error, 0.0, ending)

    def returned(
        self,
        worker: Worker,
        delivery: Delivery,
        subscription: Subscription | None,
        outcome: object,
        started_s: float,
    ) -> None:
        """The handler returned something: carry it out."""
        assert subscription is not None, "only what has a handler runs"
        duration_s = self._monotonic() - started_s
        if isinstance(outcome, Done):
            delivery.origin.lanes.done(delivery)
            return
        error: BaseException
        ending = _Ending(subscription.retry, "permanent")
        if not isinstance(outcome, Skipped | Pause | RetryLater | Dead):
            error = TypeError(
                f"handler {subscription.name}: expected None or an outcome (Done(), Skipped(), "
                f"RetryLater(delay_s), Dead(), Pause()), got {_shown(outcome)}. A handler has no "
                "result: publish an event instead."
            )
            outcome = Dead()
        else:
            error = Returned(getattr(outcome, "reason", "") or f"the handler returned {outcome}")
        if not isinstance(outcome, Skipped | Pause):
            self.telemetry.failed(subscription, "returned")
        if isinstance(outcome, RetryLater):
            self.run_failed(worker, error)
            self._count_failure(delivery)
            elapsed_s = elapsed_ms(delivery, duration_s) / 1000
            outcome = bounded(
                outcome, delivery.attempt, subscription.retry, elapsed_s=elapsed_s, reason=""
            )
            if isinstance(outcome, Dead):
                ending = _Ending(subscription.retry, "exhausted")
        elif not isinstance(outcome, Skipped) and worker.admitted is not None:
            run, worker.admitted = worker.admitted, None
            self._guard.gave_up(run)
        self._carry_out(delivery, outcome, error, duration_s, ending)

    def _count_failure(self, delivery: Delivery) -> None:
        """Tell the group's breaker of a run that is to be tried again."""
        origin = delivery.origin
        place = (origin.topic, origin.partition, delivery.lane)
        self._guard.count_failure(self._done_so_far(), place)

    def _is_outage(
        self, delivery: Delivery, subscription: Subscription, error: BaseException
    ) -> bool:
        """Whether a dependency is out: then the event runs again, and is charged nothing."""
        if isinstance(error, HandlerTimeout):
            return False  # It is a TimeoutError, but nobody knows what the handler waited for.
        for dependency in subscription.dependencies:
            if dependency.matches(error):
                lanes: Lanes = delivery.origin.lanes
                guard = self._guards[dependency.name]
                if not guard.breaker.is_open:
                    # Nothing else need run that would let it go on.
                    delivery.trouble = delivery.trouble or Trouble()
                    delivery.trouble.uncharged += 1
                    wait_s = min(
                        dependency.probe_s * 2 ** min(delivery.trouble.uncharged - 1, 30),
                        dependency.probe_s_max,
                    )
                    lanes.wait(delivery, self._clock.now_ms() + int(wait_s * 1000))
                else:
                    lanes.put_back(delivery, until=guard)
                return True
        return False

    def _carry_out(
        self,
        delivery: Delivery,
        outcome: Outcome,
        error: BaseException,
        duration_s: float,
        ending: "_Ending",
    ) -> None:
        lanes: Lanes = delivery.origin.lanes
        match outcome:
            case Done():
                lanes.done(delivery)
            case Skipped():
                lanes.skip(delivery)
            case Pause(reason):
                lanes.put_back(delivery)
                lanes.ledger.pause = reason or "a handler returned Pause()"
                lanes.ledger.urgent = True
                self._pause(lanes.ledger.pause)
            case RetryLater(delay_s):
                extra_s = self._extra_s(delay_s)
                attempts = self._attempts(delivery, error, duration_s, delay_s, extra_s)
                lanes.retry(delivery, attempts, delay_s=delay_s + extra_s)
            case Dead():
                self._dead(delivery, outcome, error, duration_s, ending)

    def _extra_s(self, delay_s: float) -> float:
        """How much longer a retry has to wait because there are too many of them."""
        if not delay_s:
            return 0.0
        return self._budget.delay_s(self._clock.monotonic_s(), self._done_so_far())

    def _dead(
        self,
        delivery: Delivery,
        outcome: Dead,
        error: BaseException,
        duration_s: float,
        ending: "_Ending",
    ) -> None:
        lanes: Lanes = delivery.origin.lanes
        on_dead = outcome.lane or self._plan.on_dead
        if on_dead == "park" and not isinstance(delivery.lane, bytes):
            # A lane of one event has nothing to park; one of a whole partition cannot.
            on_dead = "stop" if self._plan.ordering == "partition" else "continue"
        letter = dead_letter(
            delivery,
            error,
            self._attempts(delivery, error, duration_s, 0.0, 0.0),
            reason=outcome.reason,
            disposition=ending.disposition,
            crashes=lanes.suspects.crashes(delivery.offset),
            on_dead=on_dead,
            policy=ending.policy,
            app=self._app,
            app_version=self._app_version,
        )
        lanes.dead(delivery, letter, notice_of(letter, with_payload=self._dlq_payload))

    def _attempts(
        self,
        delivery: Delivery,
        error: BaseException,
        duration_s: float,
        delay_s: float,
        extra_s: float,
    ) -> Attempts:
        return attempts_after(
            delivery,
            error,
            started_ms=self._clock.now_ms() - int(duration_s * 1000),
            duration_s=duration_s,
            delay_s=delay_s,
            due_ms=self._clock.after_ms(min(delay_s + extra_s, DELAY_S_MAX)),
        )


def _shown(value: object) -> str:
    try:
        return repr(value)
    except BaseException:  # a detached row of a database, for one
        return f"a {type(value).__qualname__}"


class _Ending(NamedTuple):
    """What the letter says if this is the end: the policy that was in force, and why."""

    policy: Retry
    disposition: Disposition


class Returned(EventlaneError):
    """Stands for an exception where a handler returned `RetryLater` or `Dead`."""
