"""One process that handles until it is told to stop: alone, or as a worker of a supervisor.

A worker and its supervisor share a socket. The worker reports on it every second; when it is
closed, the supervisor is gone, however it ended, and the worker ends at once. (The parent's death
can be had as a signal on Linux alone.) A byte from the supervisor asks for what the broker has, for
`/metrics`.

A supervisor alone counts signals: a second one means to end at once. A terminal sends Ctrl-C to
all processes, and so may a service manager do with SIGTERM, so a worker takes any number of them
for one.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import FrameType

import msgspec

from eventlane.app import App
from eventlane.background import stop_on_signals
from eventlane.broker import Broker
from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.dispatch import Dispatcher
from eventlane.errors import HandlerStuck
from eventlane.health import Address, HealthServer, Report
from eventlane.metrics import Series
from eventlane.vitals import Vitals

__all__ = ["SIGNALS", "Link", "handle_alone", "handle_supervised"]

log = logging.getLogger("eventlane.worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Blocked while a worker is started, until its `Link` looks after them."""
_REPORT_S = 1.0
_REPORT_SOON_S = 0.05
"""Until the first report says that it is ready, since somebody waits for that."""

_encode = msgspec.json.Encoder().encode


class Link:
    """A worker's end of the socket, and what signals mean to it."""

    def __init__(self, file: int) -> None:
        """Look after signals from now on, and end this process with its supervisor."""
        self._socket = socket.socket(fileno=file)
        self._socket.set_inheritable(False)
        self._vitals: Vitals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._sending = threading.Lock()
        self._durable: Future[tuple[Series, ...]] | None = None
        """Asked for, and not yet sent."""
        for number in (signal.SIGINT, signal.SIGHUP):
            # A function, since what handlers start would ignore the signal as well otherwise.
            signal.signal(number, _passes)
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=self._report, name="eventlane-link", daemon=True).start()

    async def stop(self, vitals: Vitals) -> asyncio.Event:
        """Report these from now on; the event is set when it is asked to stop."""
        self._vitals, self._loop = vitals, asyncio.get_running_loop()
        return self._stop

    def close(self) -> None:
        """It has drained: signals that come now are late, and change nothing."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if self._vitals is not None:
            self._send(self._vitals.report())  # what was counted last

    def _asked_to_stop(self, *_: object) -> None:
        if self._loop is None:
            os._exit(0)  # It has not begun: there is nothing to drain.
        with contextlib.suppress(RuntimeError):  # The loop is closed: it has drained.
            self._loop.call_soon_threadsafe(self._stop.set)

    def _report(self) -> None:
        pause_s = _REPORT_SOON_S
        while True:
            readable, _, _ = select.select([self._socket], [], [], pause_s)
            try:
                if readable and not self._socket.recv(1):
                    os._exit(1)
            except OSError:
                os._exit(1)
            if self._vitals is not None and self._loop is not None:
                report = self._vitals.report()
                if readable and self._durable is None and not self._loop.is_closed():
                    asked = asyncio.run_coroutine_threadsafe(self._vitals.durable(), self._loop)
                    self._durable = asked
                report = self._with_durable(report)
                is_asked = self._durable is not None and report.is_turning
                is_awaited = report.state == "starting" or is_asked
                pause_s = _REPORT_SOON_S if is_awaited else _REPORT_S
                self._send(report)

    def _with_durable(self, report: Report) -> Report:
        if self._durable is None or not self._durable.done():
            return report
        answer, self._durable = self._durable, None
        durable = () if answer.cancelled() or answer.exception() else answer.result()
        return msgspec.structs.replace(report, durable=durable)

    def _send(self, report: Report) -> None:
        try:
            with self._sending:
                self._socket.sendall(_encode(report) + b"\n")
        except OSError:
            os._exit(1)


def _passes(number: int, frame: FrameType | None) -> None:
    """The supervisor has had this signal as well, and says what is to be done."""


def handle_supervised(app: App, link: Link) -> None:
    """Handle until the supervisor says to stop, then drain.

    Raises:
        EventlaneError: See `App.handling`.
    """

    async def handle() -> None:
        vitals = Vitals(_limits_of(app))
        await _handle(app, await link.stop(vitals), vitals)

    asyncio.run(handle())
    link.close()


def handle_alone(app: App, health: Address) -> None:
    """Handle until SIGTERM or SIGINT, then drain, and serve health meanwhile: see `App.run`.

    Raises:
        ConfigError: The address cannot be had.
        EventlaneError: See `App.handling`.
    """

    async def handle() -> None:
        vitals = Vitals(_limits_of(app))
        with HealthServer(health, vitals.pages()), stop_on_signals() as stop:
            await _handle(app, stop, vitals)

    asyncio.run(handle())


async def _handle(app: App, stop: asyncio.Event, vitals: Vitals) -> None:
    watching = asyncio.create_task(vitals.watch(), name="eventlane vitals")
    try:
        async with app, app.handling():
            vitals.handles(_dispatchers_of(app), *_broker_of(app))
            await stop.wait()
            vitals.drains()
    except HandlerStuck as error:
        # An orderly end would wait for the stuck thread for ever.
        log.critical("%s: exiting: %s", app.name, error)
        logging.shutdown()
        os._exit(1)
    finally:
        watching.cancel()


# What is the package's own about an app: users have no use for it.


def _limits_of(app: App) -> Limits:
    limits: Limits = getattr(app, "_limits")
    return limits


def _broker_of(app: App) -> tuple[Broker, Clock]:
    broker: Broker = getattr(app, "_connected")
    clock: Clock = getattr(app, "_clock")
    return broker, clock


def _dispatchers_of(app: App) -> Sequence[Dispatcher]:
    dispatchers: Sequence[Dispatcher] = getattr(app, "_dispatchers")
    return dispatchers
