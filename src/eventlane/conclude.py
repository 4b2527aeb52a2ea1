"""What becomes of a delivery once its handler has returned or raised, told to its lane."""

import random

from eventlane.clock import Clock
from eventlane.deadletter import attempts_after, dead_letter
from eventlane.errors import EventlaneError, Undecodable
from eventlane.failure import Attempts, Disposition
from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.outcome import Dead, Done, Pause, RetryLater, Skipped
from eventlane.retry import decide
from eventlane.subscription import GroupPlan, Subscription

__all__ = ["Concluder"]


class Concluder:
    """Carries out outcomes. One per group and process."""

    def __init__(self, plan: GroupPlan, *, app: str, app_version: str | None, clock: Clock) -> None:
        self._plan = plan
        self._app = app
        self._app_version = app_version
        self._clock = clock

    def failed(
        self,
        delivery: Delivery,
        subscription: Subscription,
        error: BaseException,
        duration_s: float,
    ) -> str | None:
        """The handler raised: decide, and carry it out. See `returned`."""
        before = None if delivery.trouble is None else delivery.trouble.attempts
        now_ms = self._clock.now_ms()
        outcome = decide(
            error,
            delivery.attempt,
            subscription.retry,
            jitter=random.random(),
            elapsed_s=0.0 if before is None else (now_ms - before.first_failed_ms) / 1000,
        )
        return self._carry_out(delivery, subscription, outcome, error, duration_s)

    def returned(
        self, delivery: Delivery, subscription: Subscription, outcome: object, duration_s: float
    ) -> str | None:
        """The handler returned something: carry it out.

        Returns:
            Why the group is to be paused; None where it is not.
        """
        return self._carry_out(delivery, subscription, outcome, None, duration_s)

    def _carry_out(
        self,
        delivery: Delivery,
        subscription: Subscription,
        outcome: object,
        error: BaseException | None,
        duration_s: float,
    ) -> str | None:
        lanes: Lanes = delivery.origin.lanes
        match outcome:
            case Done():
                lanes.done(delivery)
            case Skipped():
                lanes.skip(delivery)
            case Pause(reason):
                lanes.put_back(delivery)
                lanes.pause = reason or "a handler returned Pause()"
                lanes.urgent = True
                return lanes.pause
            case RetryLater():
                self._retry(delivery, subscription, outcome, error, duration_s)
            case Dead():
                self._dead(delivery, subscription, outcome, error, duration_s)
            case _:
                error = TypeError(
                    f"handler {subscription.name}: expected None or an outcome (Done(), Skipped(), "
                    f"RetryLater(delay_s), Dead(), Pause()), got {outcome!r}. A handler has no "
                    "result: publish an event instead."
                )
                self._dead(delivery, subscription, Dead(), error, duration_s)
        return None

    def _retry(
        self,
        delivery: Delivery,
        subscription: Subscription,
        outcome: RetryLater,
        error: BaseException | None,
        duration_s: float,
    ) -> None:
        if error is None:
            error = _Returned(outcome.reason or "the handler returned RetryLater")
            if delivery.attempt >= subscription.retry.attempts:
                self._dead(delivery, subscription, Dead(), error, duration_s)
                return
        attempts = self._attempts(delivery, error, duration_s, outcome.delay_s)
        delivery.origin.lanes.retry(delivery, attempts)

    def _dead(
        self,
        delivery: Delivery,
        subscription: Subscription,
        outcome: Dead,
        error: BaseException | None,
        duration_s: float,
    ) -> None:
        if error is None:
            error = _Returned(outcome.reason or "the handler returned Dead()")
        on_dead = outcome.lane or self._plan.on_dead
        if on_dead == "park" and not isinstance(delivery.lane, bytes):
            # A lane of one event has nothing to park; one of a whole partition cannot.
            on_dead = "stop" if self._plan.ordering == "partition" else "continue"
        letter = dead_letter(
            delivery,
            error,
            self._attempts(delivery, error, duration_s, 0.0),
            reason=outcome.reason,
            disposition=_disposition(error, delivery.attempt, subscription.retry.attempts),
            on_dead=on_dead,
            policy=subscription.retry,
            app=self._app,
            app_version=self._app_version,
        )
        delivery.origin.lanes.dead(delivery, letter)

    def _attempts(
        self, delivery: Delivery, error: BaseException, duration_s: float, delay_s: float
    ) -> Attempts:
        return attempts_after(
            delivery,
            error,
            started_ms=self._clock.now_ms() - int(duration_s * 1000),
            duration_s=duration_s,
            delay_s=delay_s,
        )


def _disposition(error: BaseException, attempt: int, attempts: int) -> Disposition:
    if isinstance(error, Undecodable):
        return "undecodable"
    return "exhausted" if attempt >= attempts else "permanent"


class _Returned(EventlaneError):
    """Stands for an exception where a handler returned `RetryLater` or `Dead`."""
