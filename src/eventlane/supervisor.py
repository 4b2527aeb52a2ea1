"""Several workers, each a process of its own: started, watched, replaced, drained.

A worker is a new interpreter that runs the same command, never a fork. The first has to be ready
before the others start, so that what is wrong with all of them is said once.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from eventlane.clock import SystemClock, sleep
from eventlane.config import Limits
from eventlane.health import Address, Answer, HealthServer, Page, Reason, Report, live, ready
from eventlane.metrics import Series, added
from eventlane.scraping import FRESH_S, page_of
from eventlane.worker import SIGNALS

__all__ = ["Supervisor", "backoff_s", "sources_of", "why_ended"]

log = logging.getLogger("eventlane.supervisor")

_BACKOFF_S = (0.5, 30.0)
_HEALTHY_S = 60.0
"""A worker that was ready for so long is started again as if it had never failed."""
_HOPELESS = (2, 3)
"""Exit codes that say that the next one would end so as well: usage, refused."""
_LOOK_S = 1.0
_EXTRA_S = 5.0
"""Beyond the time that a drain may take."""
_REPORT_BYTES_MAX = 1 << 26  # two figures for each partition of each group, among others
_DURABLE_S_MAX = 1.0
"""For so long a worker is waited for that is asked for what the broker has."""
_LAST_WORDS_S = 0.5
"""For so long what an ended process has said is waited for; something else may have its socket."""
_UNWATCHED = {"__pycache__", "node_modules", "site-packages"}

_decode = msgspec.json.Decoder(Report).decode


def backoff_s(failures: int) -> float:
    """How long to wait before a worker is started that failed so often in a row."""
    first_s, most_s = _BACKOFF_S
    return min(first_s * 2.0 ** (min(failures, 60) - 1), most_s)


def why_ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (kill -9, or the kernel was out of memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def sources_of(directory: Path) -> dict[str, tuple[int, int]]:
    """All .py files below a directory and when they changed; none of virtual environments."""
    found: dict[str, tuple[int, int]] = {}
    for place, below, files in os.walk(directory):
        if "pyvenv.cfg" in files:
            below.clear()
            continue
        below[:] = [each for each in below if each not in _UNWATCHED and not each.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = f"{place}/{name}"
                with contextlib.suppress(FileNotFoundError):  # It has just been replaced.
                    stat = os.stat(path)  # noqa: PTH116  # hundreds of them every second
                    found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


class _Worker:
    """A process, and what it says of itself."""

    def __init__(self, number: int, process: Process, link: socket.socket) -> None:
        self.number = number
        self.report: Report | None = None
        self.series: tuple[Series, ...] = ()
        """What it has counted."""
        self.durable: asyncio.Future[tuple[Series, ...]] | None = None
        """What the broker has, once it has answered."""
        self.silent_looks = 0
        """How often it was looked at since it last said something."""
        self.started_s = SystemClock.monotonic_s()
        self.ready_s: float | None = None
        """Since when it is ready."""
        self.is_leaving = False
        """Its end is expected."""
        self.settled = asyncio.Event()
        """It is ready, or has ended."""
        self.code: int | None = None
        self._process = process
        self._link = link
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def limits(self) -> Report | Limits:
        return self.report or Limits()

    async def listen(self) -> None:
        """Take in its reports until it ends."""
        reader, writer = await asyncio.open_connection(sock=self._link, limit=_REPORT_BYTES_MAX)
        self._writer = writer
        try:
            async for line in reader:
                if not line.endswith(b"\n"):  # It has ended within a line.
                    break
                report = self.report = _decode(line)
                self.series, self.silent_looks = report.series, 0
                if report.durable is not None and self.durable and not self.durable.done():
                    self.durable.set_result(report.durable)
                if self.report.state == "ready" and self.ready_s is None:
                    self.ready_s = SystemClock.monotonic_s()
                    self.settled.set()
        except OSError:
            log.debug("worker %d: its socket failed", self.number, exc_info=True)
        finally:
            writer.close()

    async def ended(self) -> int:
        self.code = await self._process.wait()
        self.settled.set()
        return self.code

    async def ask(self) -> tuple[Series, ...] | None:
        """What the broker has; None if it does not answer."""
        if self._writer is None:
            return None
        self.durable = asyncio.get_running_loop().create_future()
        self._writer.write(b"?")
        done, _ = await asyncio.wait((self.durable,), timeout=_DURABLE_S_MAX)
        return self.durable.result() if done else None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class Supervisor:
    """Keeps workers running until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        workers: int,
        health: Address | None = None,
        reload: Path | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            command: What a worker runs; the number of its end of the socket is added to it.
            workers: How many.
            health: Where `/live` and `/ready` are served; None: nowhere.
            reload: Start all of them anew when a .py file below this directory changes.
        """
        self._command = command
        self._count = workers
        self._health = health
        self._pages: dict[str, Page] = {
            "/live": self._live,
            "/ready": self._ready,
            "/metrics": page_of(self._gather, lambda: self._loop, tuple),
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: list[Series] = []
        """What processes that have ended had counted."""
        self._unexpected = 0
        """How many ended without being asked to."""
        self._gathering = asyncio.Lock()
        self._durable: tuple[Series, ...] = ()
        self._read_s = -FRESH_S
        self._reload = reload
        self._workers: dict[int, _Worker] = {}
        """Who works in each place; one that is starting is its place's already, unless the one
        before is to work on until then."""
        self._alive: set[_Worker] = set()
        """All processes, those that leave included."""
        self._failures: dict[int, int] = {}
        """How often in a row the worker of a place failed."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._filling = asyncio.Lock()
        self._restarting = asyncio.Lock()
        self._over = asyncio.Event()
        self._changed = asyncio.Event()
        """A worker has become ready."""
        self._roll = asyncio.Event()
        """A rolling restart was asked for."""
        self._code = 0
        self._turned_s = SystemClock.monotonic_s()

    async def run(self) -> int:
        """Keep workers running until SIGTERM or SIGINT, then drain them; SIGHUP: one after another.

        A second SIGTERM or SIGINT kills them and ends this process at once.

        Returns:
            The exit code: 0 after a clean drain, 1 if a worker did not drain, and the code of a
            first worker that cannot work at all.

        Raises:
            ConfigError: The address for health cannot be had; nothing was started.
        """
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            if self._health is not None:
                stack.enter_context(HealthServer(self._health, self._pages))
            stack.enter_context(self._signals())
            self._go(self._look())
            self._go(self._open())
            self._go(self._restart_one_by_one())
            if self._reload is not None:
                self._go(self._restart_on_change(self._reload))
            await self._over.wait()
            self._is_stopping = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*map(self._drain, tuple(self._alive)))
            await asyncio.gather(*self._watching)
        return self._code

    # --- signals ----------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        meant: dict[signal.Signals, Callable[[signal.Signals], None]] = {
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            meant[signal.SIGHUP] = self._asked_to_roll
        for number, then in meant.items():
            loop.add_signal_handler(number, then, number)
        try:
            yield
        finally:
            for number in meant:
                loop.remove_signal_handler(number)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if not self._over.is_set():
            log.info("%s: draining %d workers", number.name, len(self._alive))
            self._over.set()
            return
        log.warning("%s once more: ending at once; nothing is lost", number.name)
        for worker in self._alive:
            worker.send(signal.SIGKILL)
        logging.shutdown()
        os._exit(128 + number)

    def _asked_to_roll(self, number: signal.Signals) -> None:
        if _terminal_has_gone():
            self._asked_to_stop(number)
        else:
            log.info("SIGHUP: restarting the workers one after another")
            self._roll.set()

    # --- processes --------------------------------------------------------------------------

    async def _open(self) -> None:
        """Start the first, and the others when it is ready."""
        await self._fill(1)
        await self._changed.wait()
        await self._fill_all()

    async def _fill_all(self) -> None:
        for number in range(1, self._count + 1):
            await self._fill(number)

    async def _fill(self, number: int) -> None:
        """Start a worker where there is none."""
        async with self._filling:
            if number not in self._workers:
                await self._start(number)

    async def _start(self, number: int, *, is_beside: bool = False) -> _Worker | None:
        """Start a worker; beside another one it takes no place yet. None: it cannot be."""
        try:
            worker = await self._spawn(number)
        except OSError as error:
            log.error("worker %d cannot be started: %s", number, error)  # noqa: TRY400  # no bug
            if not is_beside:
                self._start_again(number)
            return None
        log.debug("worker %d is process %d", number, worker.pid)
        self._alive.add(worker)
        if not is_beside:
            self._workers[number] = worker
        watching = asyncio.create_task(self._watch(worker))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return worker

    async def _spawn(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs, _signals_blocked():
                file = theirs.fileno()
                process = await asyncio.create_subprocess_exec(
                    *self._command, str(file), stdin=DEVNULL, pass_fds=(file,)
                )
        except BaseException:
            ours.close()
            raise
        return _Worker(number, process, ours)

    async def _watch(self, worker: _Worker) -> None:
        """See a process to its end, and what comes of it."""
        listening = asyncio.create_task(worker.listen())
        noting = asyncio.create_task(self._note_ready(worker))
        code = await worker.ended()
        await noting
        await asyncio.wait((listening,), timeout=_LAST_WORDS_S)
        listening.cancel()
        self._alive.discard(worker)
        self._ended = added((self._ended, worker.series))
        if self._workers.get(worker.number) is not worker:  # Another one has its place.
            return
        del self._workers[worker.number]
        if self._is_stopping or worker.is_leaving:
            return
        now_s = SystemClock.monotonic_s()
        self._unexpected += 1
        why = f"worker {worker.number} (process {worker.pid}) {why_ended(code)}"
        ran_s = now_s - worker.started_s
        if worker.ready_s is None and code in _HOPELESS and self._is_hopeless():
            log.critical("%s after %.1f s, before it was ready: not starting it again", why, ran_s)
            if self._reload is None:
                self._code = code
                self._over.set()
            return
        if worker.ready_s is not None and now_s - worker.ready_s >= _HEALTHY_S:
            self._failures.pop(worker.number, None)
        extra = {"kind": "worker_ended", "worker": worker.number, "exit_code": code}
        log.error("%s after %.1f s", why, ran_s, extra=extra)
        self._start_again(worker.number)

    async def _note_ready(self, worker: _Worker) -> None:
        await worker.settled.wait()
        if worker.code is None:
            log.info(
                "worker %d (process %d) is ready",
                *(worker.number, worker.pid),
                extra={"kind": "worker_ready", "worker": worker.number},
            )
            self._changed.set()

    def _is_hopeless(self) -> bool:
        """Whether no worker has shown that it can be done."""
        return all(each.ready_s is None for each in self._workers.values())

    def _start_again(self, number: int) -> None:
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        delay_s = backoff_s(failures)
        log.warning("worker %d starts again in %.1f s", number, delay_s)

        async def start() -> None:
            await sleep(delay_s)
            await self._fill(number)

        self._go(start())

    async def _drain(self, worker: _Worker) -> None:
        """Have a worker drain, and see to it that it ends."""
        worker.is_leaving = True
        worker.send(signal.SIGTERM)
        # Handlers may take one drain_s, and writing what became of them another one.
        patience_s = 2 * worker.limits.drain_s + _EXTRA_S
        ended = asyncio.ensure_future(worker.ended())
        await asyncio.wait((ended,), timeout=patience_s)
        if not ended.done():
            log.error(
                "worker %d (process %d) has not drained within %g s: killing it; what was not "
                "settled will be handled again",
                *(worker.number, worker.pid, patience_s),
            )
            worker.send(signal.SIGKILL)
        code = await ended
        if code != 0:
            log.error(
                "worker %d (process %d) %s instead of draining",
                *(worker.number, worker.pid, why_ended(code)),
            )
            if self._is_stopping:
                self._code = self._code or 1

    async def _restart_one_by_one(self) -> None:
        while True:
            await self._roll.wait()
            self._roll.clear()
            async with self._restarting:
                for number in range(1, self._count + 1):
                    if not await self._replace(number):
                        break
                else:
                    log.info("all workers were restarted")

    async def _replace(self, number: int) -> bool:
        """Put a new worker in the place of another one, which works on until it is ready."""
        if number not in self._workers:
            await self._fill(number)
            return True
        new = await self._start(number, is_beside=True)
        if new is not None:
            await new.settled.wait()
        if new is None or new.code is not None:
            how = "cannot be started" if new is None else why_ended(new.code or 0)
            log.error(
                "worker %d: the new one %s before it was ready, so the restart ends here; those "
                "that run go on",
                *(number, how),
            )
            return False
        before, self._workers[number] = self._workers.get(number), new
        if before is not None and before is not new:
            await self._drain(before)
        self._failures.pop(number, None)
        return True

    async def _restart_on_change(self, directory: Path) -> None:
        """Look at the files every second: a library that is told of changes is one more to have."""
        before = await asyncio.to_thread(sources_of, directory)
        log.info("watching %d .py files below %s", len(before), directory)
        while True:
            await sleep(_LOOK_S)
            now = await asyncio.to_thread(sources_of, directory)
            changed = sorted(path for path, _ in before.items() ^ now.items())
            before = now
            if changed:
                log.info("%s has changed: restarting the workers", changed[0])
                async with self._restarting:
                    # All at once: the code may be at odds with what still runs.
                    await asyncio.gather(*map(self._drain, tuple(self._alive)))
                    self._failures.clear()
                    await self._fill_all()

    async def _look(self) -> None:
        """Every second: replace who gives no sign of life any more."""
        while True:
            await sleep(_LOOK_S)
            self._turned_s = SystemClock.monotonic_s()
            for worker in self._alive:
                report = worker.report
                if report is None or worker.is_leaving:
                    continue
                # Counted, not timed: where all of this machine stood still nobody is to blame.
                worker.silent_looks += 1
                if worker.silent_looks * _LOOK_S > report.lease_s:
                    why = f"has given no sign of life for {report.lease_s:g} s (Limits.lease_s)"
                elif report.stalled_s > report.stuck_s:
                    why = f"has an event loop that is blocked for {report.stuck_s:g} s (stuck_s)"
                else:
                    continue
                log.error(
                    "worker %d (process %d) %s: killing it",
                    *(worker.number, worker.pid, why),
                    extra={"kind": "worker_killed", "worker": worker.number, "reason": why},
                )
                worker.report = None
                worker.send(signal.SIGKILL)

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the supervisor failed: draining", exc_info=error)
            self._code = 1
            self._over.set()

    # --- metrics ----------------------------------------------------------------------------

    async def _gather(self) -> Sequence[Series]:
        """What all workers have counted, and what one of them reads of the broker."""
        async with self._gathering:
            if SystemClock.monotonic_s() - self._read_s >= FRESH_S:
                self._durable = await self._read()
                self._read_s = SystemClock.monotonic_s()
        ready_count = sum(each.ready_s is not None for each in self._workers.values())
        return (
            *added((self._ended, *(each.series for each in self._alive))),
            *self._durable,
            Series("eventlane_workers", (), (ready_count,)),
            Series("eventlane_worker_failures_total", (), (self._unexpected,)),
        )

    async def _read(self) -> tuple[Series, ...]:
        turning = [
            each
            for each in self._workers.values()
            if each.report is not None and each.report.state == "ready" and each.report.is_turning
        ]
        for worker in turning[:2]:
            durable = await worker.ask()
            if durable is not None:
                return durable
        return ()

    # --- health: called on the server's threads ---------------------------------------------

    def _live(self) -> Answer:
        reports = [each.report for each in self._workers.copy().values() if each.report is not None]
        # One that is blocked is replaced from here; all of them are more than that.
        turns = any(report.is_turning for report in reports) if reports else True
        is_stalled = SystemClock.monotonic_s() - self._turned_s > Limits().stall_s_max
        return live(is_live=turns and not is_stalled)

    def _ready(self) -> Answer:
        if self._is_stopping:
            return ready([Reason(reason="draining", detail="the supervisor was asked to end")])
        reasons: list[Reason] = []
        are_ready = False
        for number, worker in sorted(self._workers.copy().items()):
            report = worker.report
            if report is not None and report.state == "ready":
                are_ready = True
                reasons += [
                    msgspec.structs.replace(each, worker=number) for each in report.all_reasons
                ]
        if not are_ready:
            reasons.append(Reason(reason="starting", detail="no worker is ready yet"))
        return ready(reasons)


@contextmanager
def _signals_blocked() -> Generator[None]:
    """A process that is started meanwhile has these blocked until it looks after them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        # Not as they were before: two may be started at a time.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _terminal_has_gone() -> bool:
    """Whether SIGHUP means what it meant first: the terminal was closed."""
    try:
        os.tcgetpgrp(0)
    except OSError as error:
        return error.errno == errno.EIO
    return False
