"""Runs lists for batch handlers, and takes what became of each of their events."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from eventlane.batching import Ended, Lists, add_mates, by_lane, outcomes_of
from eventlane.clock import loop_time
from eventlane.conclude import Concluder
from eventlane.errors import Undecodable
from eventlane.handler import Delivery, Origin
from eventlane.lanes import Lanes
from eventlane.outcome import Done, Skipped
from eventlane.routing import Route
from eventlane.subscription import Subscription
from eventlane.workers import Worker, ends_process

__all__ = ["ListRunner"]


class _MayRun(Protocol):
    def __call__(self, worker: Worker, route: Route, deliveries: Sequence[Delivery], /) -> bool: ...


class ListRunner:
    """Part of a dispatcher: see the parameters."""

    def __init__(
        self,
        lists: Lists,
        concluder: Concluder,
        handlers: Mapping[str, Callable[..., Any]],
        *,
        partitions: Mapping[tuple[str, int], Lanes],
        route: Callable[[Origin, bytes], Route],
        may_run: _MayRun,
        permit_mate: Callable[[Route], bool],
        started: Callable[[], None],
        note: Callable[[Lanes], None],
    ) -> None:
        """`may_run` puts back what may not; `permit_mate` asks the rates for one more event;
        `started` and `note` are told what they say.
        """
        self._lists = lists
        self._concluder = concluder
        self._handlers = handlers
        self._partitions = partitions
        self._route = route
        self._may_run = may_run
        self._permit_mate = permit_mate
        self._started = started
        self._note = note
        self._monotonic = loop_time()

    async def run(
        self, worker: Worker, subscription: Subscription, deliveries: list[Delivery]
    ) -> None:
        """Hand a list to its handler."""
        if not deliveries:  # its partition was lost meanwhile
            return
        route = self._route(deliveries[0].origin, deliveries[0].record.headers)
        if not self._may_run(worker, route, deliveries):
            return
        assert subscription.batch is not None
        if subscription.batch.lanes == "together":
            add_mates(deliveries, subscription.batch.size, partial(self._decodes, subscription))
        worker.handling, worker.subscription = deliveries, subscription
        self._started()
        started_s = self._monotonic()
        if subscription.timeout_s:
            worker.deadline = started_s + subscription.timeout_s
        try:
            outcomes: Any = await self._handlers[subscription.name](
                [each.event for each in deliveries], deliveries
            )
        except asyncio.CancelledError as error:
            if worker.is_stopping:
                raise
            self._failed(worker, deliveries, subscription, worker.why_cancelled(error), started_s)
        except BaseException as error:  # no handler may end the process, or its group
            if ends_process(error):
                raise
            self._failed(worker, deliveries, subscription, error, started_s)
        else:
            await self._returned(worker, deliveries, subscription, outcomes, started_s)
        finally:
            self._concluder.telemetry.took(subscription, self._monotonic() - started_s)
            worker.handling = None
            worker.ended()
            for lanes in {id(each.origin): each.origin.lanes for each in deliveries}.values():
                self._note(lanes)

    async def _returned(
        self,
        worker: Worker,
        deliveries: list[Delivery],
        subscription: Subscription,
        outcomes: object,
        started_s: float,
    ) -> None:
        why: BaseException | None = await self._concluder.missing(deliveries)
        if worker.deadline and self._monotonic() > worker.deadline:
            why = worker.time_is_over()
        if why is not None:
            self._failed(worker, deliveries, subscription, why, started_s)
            return
        for mates in by_lane(deliveries, outcomes_of(outcomes, len(deliveries))):
            self._mates_returned(worker, subscription, mates, started_s)

    def collect(self, worker: Worker, route: Route, delivery: Delivery) -> None:
        """Put an event into the list that its handler is given next."""
        assert route.subscription is not None
        try:
            if delivery.record.value is not None:
                delivery.event = route.decode_in_words(delivery.record.value)
        except Undecodable as error:
            started_s = self._monotonic()
            self._concluder.failed(worker, delivery, route.subscription, error, started_s)
            self._note(delivery.origin.lanes)
        else:
            self._lists.add(route.subscription, delivery)

    def _decodes(self, subscription: Subscription, delivery: Delivery) -> bool:
        """Give a delivery its event, if it is of this handler and can be decoded."""
        route = self._route(delivery.origin, delivery.record.headers)
        if route.subscription is not subscription or delivery.record.value is None:
            return False
        try:
            delivery.event = route.decode_in_words(delivery.record.value)
        except Undecodable:
            return False  # It is refused in words when its own turn comes.
        return self._permit_mate(route)

    def _mates_returned(
        self, worker: Worker, subscription: Subscription, mates: Sequence[Ended], started_s: float
    ) -> None:
        """Carry out what became of one lane's events in a list, up to the first that failed."""
        for at, (delivery, outcome) in enumerate(mates):
            if at + 1 < len(mates) and isinstance(outcome, Done | Skipped):
                kind = "done" if isinstance(outcome, Done) else "skipped"
                delivery.origin.lanes.mate_ended(delivery, kind)
                continue
            delivery.origin.lanes.put_mates_back([later for later, _ in mates[at + 1 :]])
            self._concluder.returned(worker, delivery, subscription, outcome, started_s)
            return

    def _failed(
        self,
        worker: Worker,
        deliveries: list[Delivery],
        subscription: Subscription,
        error: BaseException,
        started_s: float,
    ) -> None:
        if len(deliveries) == 1:
            self._concluder.failed(worker, deliveries[0], subscription, error, started_s)
            return
        self._concluder.run_failed(worker, error)
        # What was lost while the list ran is another process's to handle now.
        owned = [each for each in deliveries if each.origin.lanes in self._partitions.values()]
        self._lists.one_by_one(owned)
