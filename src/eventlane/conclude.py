"""What becomes of a delivery once its handler has returned or raised, told to its lane."""

import random
from typing import NamedTuple

from eventlane.clock import Clock
from eventlane.deadletter import attempts_after, dead_letter
from eventlane.errors import EventlaneError, Undecodable
from eventlane.failure import Attempts, Disposition
from eventlane.handler import Delivery
from eventlane.lanes import Lanes
from eventlane.outcome import Dead, Done, Outcome, Pause, RetryLater, Skipped
from eventlane.retry import Retry, decide, in_force
from eventlane.subscription import GroupPlan, Subscription

__all__ = ["Concluder", "Returned"]


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
        policy, answer = in_force(error, subscription.retry)
        ending = _Ending(policy, "permanent" if isinstance(answer, Dead) else "exhausted")
        if isinstance(error, Undecodable):
            ending = _Ending(policy, "undecodable")
        return self._carry_out(delivery, outcome, error, duration_s, ending)

    def returned(
        self, delivery: Delivery, subscription: Subscription, outcome: object, duration_s: float
    ) -> str | None:
        """The handler returned something: carry it out.

        Returns:
            Why the group is to be paused; None where it is not.
        """
        if isinstance(outcome, Done):
            delivery.origin.lanes.done(delivery)
            return None
        error: BaseException
        ending = _Ending(subscription.retry, "permanent")
        if not isinstance(outcome, Skipped | Pause | RetryLater | Dead):
            error = TypeError(
                f"handler {subscription.name}: expected None or an outcome (Done(), Skipped(), "
                f"RetryLater(delay_s), Dead(), Pause()), got {_shown(outcome)}. A handler has no "
                "result: publish an event instead."
            )
            return self._carry_out(delivery, Dead(), error, duration_s, ending)
        error = Returned(getattr(outcome, "reason", "") or f"the handler returned {outcome}")
        if isinstance(outcome, RetryLater) and delivery.attempt >= subscription.retry.attempts:
            ending = _Ending(subscription.retry, "exhausted")
            outcome = Dead()
        return self._carry_out(delivery, outcome, error, duration_s, ending)

    def _carry_out(
        self,
        delivery: Delivery,
        outcome: Outcome,
        error: BaseException,
        duration_s: float,
        ending: "_Ending",
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
            case RetryLater(delay_s):
                lanes.retry(delivery, self._attempts(delivery, error, duration_s, delay_s))
            case Dead():
                self._dead(delivery, outcome, error, duration_s, ending)
        return None

    def _dead(
        self,
        delivery: Delivery,
        outcome: Dead,
        error: BaseException,
        duration_s: float,
        ending: "_Ending",
    ) -> None:
        on_dead = outcome.lane or self._plan.on_dead
        if on_dead == "park" and not isinstance(delivery.lane, bytes):
            # A lane of one event has nothing to park; one of a whole partition cannot.
            on_dead = "stop" if self._plan.ordering == "partition" else "continue"
        letter = dead_letter(
            delivery,
            error,
            self._attempts(delivery, error, duration_s, 0.0),
            reason=outcome.reason,
            disposition=ending.disposition,
            on_dead=on_dead,
            policy=ending.policy,
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
