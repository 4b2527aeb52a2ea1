"""Workers and their supervisor: real processes that are killed, stopped, restarted and drained."""

import asyncio
import fcntl
import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from eventlane import App, GroupStatus, Limits, StorageError
from eventlane.health import Report
from eventlane.supervisor import Supervisor
from eventlane.testing.stage import until
from tests.crash.served import Job, app

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
COMMAND = (sys.executable, "-c", "import sys; from eventlane.cli import main; sys.exit(main())")


class Service:
    """`eventlane run`, in a process group of its own as at a terminal."""

    def __init__(
        self, place: Path, *options: str, app: str = "tests.crash.served:app", cwd: Path = ROOT
    ) -> None:
        self.place = place
        self.said: list[tuple[str, int, int]] = []
        """What handlers said: begin or end, which job, which process."""
        self._log = place / "log"
        self._rest = b""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "run", app, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                env=environment(place),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._out = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._out.close()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def ready_pids(self) -> list[int]:
        """The workers that were ready, in the order in which they were."""
        return [int(pid) for pid in re.findall(r"\(process (\d+)\) is ready", self.log)]

    def ended(self, what: str) -> set[int]:
        return {number for said, number, _ in self.said if said == what}

    def until(self, enough: Callable[[], object], what: str) -> None:
        """Wait for something that the processes do."""
        until_s = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < until_s, f"expected {what}; it said {self.said}\n{self.log}"
            if select.select([self._out], [], [], 0.02)[0]:
                *lines, self._rest = (self._rest + os.read(self._out.fileno(), 65_536)).split(b"\n")
                for line in lines:
                    said, number, pid = line.decode().split()
                    self.said.append((said, int(number), int(pid)))
                if not lines and not self._rest:
                    select.select([], [], [], 0.02)  # all have ended

    def until_ready(self, count: int) -> list[int]:
        self.until(lambda: len(self.ready_pids) >= count, f"{count} workers that are ready")
        return self.ready_pids

    def until_logged(self, words: str) -> None:
        self.until(lambda: words in self.log, f"{words!r} in the log")

    def until_begun(self, *numbers: int) -> None:
        self.until(lambda: self.ended("begin") >= {*numbers}, f"jobs {numbers} to begin")

    def until_done(self, *numbers: int) -> None:
        self.until(lambda: self.ended("end") >= {*numbers}, f"jobs {numbers} to end")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """As a terminal does with Ctrl-C, and a service manager with SIGTERM."""
        os.killpg(self._process.pid, number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def ask(self, page: str) -> tuple[int, Any]:
        """What health says."""
        status, body = self._get(page)
        return status, json.loads(body)

    def page(self, page: str) -> str:
        return self._get(page)[1].decode()

    def _get(self, page: str) -> tuple[int, bytes]:
        found = re.findall(r"health: http://127\.0\.0\.1:(\d+)", self.log)
        connection = http.client.HTTPConnection("127.0.0.1", int(found[-1]), timeout=PATIENCE_S)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def until_reason(self, reason: str) -> dict[str, Any]:
        """Wait until it is not ready, for this reason."""

        def given() -> list[dict[str, Any]]:
            status, answer = self.ask("/ready")
            assert (status == 503) == bool(answer["reasons"])
            return [each for each in answer["reasons"] if each["reason"] == reason]

        self.until(given, f"/ready to say {reason}")
        return given()[0]

    def until_ready_is_said(self) -> None:
        self.until(
            lambda: self.ask("/ready") == (200, {"ready": True, "reasons": []}), "/ready to say 200"
        )


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "SERVED_PLACE": str(place), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}


def shop(place: Path) -> App:
    return app.replace(url=f"embedded:{place}/data")


def publish(place: Path, *numbers: int, kind: str = "plain") -> None:
    with shop(place) as publisher:
        for future in [publisher.submit(Job(number, kind)) for number in numbers]:
            future.result(PATIENCE_S)


def account_of(place: Path) -> GroupStatus:
    async def ask() -> GroupStatus:
        async with shop(place) as asking:
            return (await asking.status()).groups["work"]

    return asyncio.run(ask())


def open_all(place: Path) -> None:
    (place / "open").touch()


def be_impatient(place: Path, lease_s: float = 1.5) -> None:
    (place / "impatient").write_text(str(lease_s))


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet has ended."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")


@contextmanager
def storage_held(place: Path) -> Generator[None]:
    """Nobody can write to the file meanwhile."""
    with (place / "data" / "eventlane.lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


HEALTH = ("--health", "127.0.0.1:0")


def test_a_killed_worker_comes_back_and_nothing_is_lost(place: Path) -> None:
    with Service(place, "--workers", "2", *HEALTH) as service:
        first, second = service.until_ready(2)
        publish(place, 1, 2)
        service.until_done(1, 2)
        [handler] = {pid for _, _, pid in service.said}
        assert handler in {first, second}
        os.kill(handler, signal.SIGKILL)
        publish(place, 3, 4)
        service.until_done(3, 4)
        service.until_ready(3)
        assert "was ended by SIGKILL" in service.log
        assert "starts again in 0.5 s" in service.log
        service.until_ready_is_said()
        assert service.ask("/live") == (200, {"live": True})
        os.kill(service.ready_pids[2], signal.SIGTERM)  # by hand: it drains, and another one comes
        service.until_logged(f"(process {service.ready_pids[2]}) ended with exit code 0")
        service.send(signal.SIGTERM)
        assert service.wait() == 0, service.log
    assert (account_of(place).done, account_of(place).open) == (4, 0)


def test_metrics_are_summed_over_workers_and_outlive_those_that_end(place: Path) -> None:
    def told(line: str) -> Callable[[], bool]:
        return lambda: line in service.page("/metrics")

    attempts = 'eventlane_attempts_total{group="work",outcome="done"} %d\n'
    with Service(place, "--workers", "2", *HEALTH) as service:
        first, _ = service.until_ready(2)
        publish(place, 1, 2)
        service.until_done(1, 2)
        service.until(told(attempts % 2), "both to be counted")
        service.until(
            told('eventlane_lag_events{group="work",topic="jobs",partition="0"} 0\n'), "lag"
        )
        done = 'eventlane_group_events{group="work",state="done"} %d\n'
        service.until(told(done % 2), "the account")
        assert told("eventlane_workers 2\n")()
        for pid in service.ready_pids:
            os.kill(pid, signal.SIGKILL)
        service.until_ready(4)
        publish(place, 3)
        service.until_done(3)
        service.until(told(attempts % 3), "what dead workers had, and one more")
        service.until(told(done % 3), "the account afterwards")
        assert told("eventlane_worker_failures_total 2\n")()
        service.send_to_all(signal.SIGHUP)
        service.until_logged("all workers were restarted")
        assert told(attempts % 3)()
        assert first not in service.ready_pids[2:]


def test_ctrl_c_drains_and_health_says_so_meanwhile(place: Path) -> None:
    with Service(place, "--workers", "2", *HEALTH) as service:
        pids = service.until_ready(2)
        publish(place, 1, kind="wait")
        service.until_begun(1)
        service.send_to_all(signal.SIGINT)
        service.until_reason("draining")
        assert service.ask("/live") == (200, {"live": True})
        open_all(place)
        service.until_done(1)
        assert service.wait() == 0, service.log
        assert [said for said, _, _ in service.said] == ["begin", "end"]
        assert not any(map(lives, pids))


def test_a_second_sigterm_ends_all_at_once_and_loses_nothing(place: Path) -> None:
    with Service(place, "--workers", "2") as service:
        pids = service.until_ready(2)
        publish(place, 1, kind="wait")
        service.until_begun(1)
        service.send_to_all(signal.SIGTERM)
        service.until_logged("draining 2 workers")
        assert all(map(lives, {pid for _, _, pid in service.said}))
        service.send_to_all(signal.SIGTERM)
        assert service.wait() == 128 + signal.SIGTERM
        service.until(lambda: not any(map(lives, pids)), "the workers to end")
        assert not service.ended("end")
    open_all(place)
    with Service(place) as service:
        service.until_done(1)
        service.send(signal.SIGTERM)
        assert service.wait() == 0
    assert (account_of(place).done, account_of(place).open) == (1, 0)


def test_workers_end_when_their_supervisor_is_killed(place: Path) -> None:
    with Service(place, "--workers", "2") as service:
        pids = service.until_ready(2)
        publish(place, 1, kind="block")  # even one whose event loop is blocked
        service.until_begun(1)
        service.send(signal.SIGKILL)
        service.until(lambda: not any(map(lives, pids)), "the workers to end")


def test_sighup_restarts_one_worker_after_the_other(place: Path) -> None:
    with Service(place, "--workers", "2", *HEALTH) as service:
        before = service.until_ready(2)
        publish(place, 1)
        service.until_done(1)
        service.send_to_all(signal.SIGHUP)
        service.until_logged("all workers were restarted")
        after = service.ready_pids[2:]
        assert len(after) == 2
        assert not any(map(lives, before))
        publish(place, 2)
        service.until_done(2)
        assert {pid for _, number, pid in service.said if number == 2} <= {*after}
        service.until_ready_is_said()

        (place / "mode").write_text("raise")
        service.send(signal.SIGHUP)
        service.until_logged("so the restart ends here; those that run go on")
        assert all(map(lives, after))
        (place / "mode").unlink()
        publish(place, 3)
        service.until_done(3)
        service.send(signal.SIGTERM)
        assert service.wait() == 0


def test_a_worker_that_crashes_again_and_again_is_started_less_and_less_often(place: Path) -> None:
    (place / "mode").write_text("crash")
    with Service(place, "--workers", "2", *HEALTH) as service:
        service.until_logged("worker 1 starts again in 0.5 s")
        service.until_reason("starting")
        service.until_logged("worker 1 starts again in 1.0 s")
        assert service.log.count("ended with exit code 7") == 2
        service.send(signal.SIGTERM)
        assert service.wait() == 0


def test_a_module_that_raises_is_said_once_and_ends_all_with_the_same_code(place: Path) -> None:
    (place / "mode").write_text("raise")
    with Service(place, "--workers", "3") as service:
        assert service.wait() == 2
        assert service.log.count("its module raised while it was imported") == 1
        frames = re.findall(r'File "(.*?)", line \d+', service.log)
        assert frames == [str(ROOT / "tests/crash/served.py")]
        assert "KeyError: 'SERVED_NOWHERE'" in service.log
        assert "not starting it again" in service.log


def test_a_frozen_worker_is_killed_and_replaced(place: Path) -> None:
    be_impatient(place)
    with Service(place, "--workers", "2") as service:
        first, _ = service.until_ready(2)
        os.kill(first, signal.SIGSTOP)
        service.until_logged(f"worker 1 (process {first}) has given no sign of life for 1.5 s")
        service.until_ready(3)
        assert not lives(first)


def test_a_worker_that_is_frozen_within_a_commit_is_named_killed_and_replaced(place: Path) -> None:
    be_impatient(place, lease_s=5)
    limits = Limits(lease_s=0.4, stall_s_max=0.2)
    with (
        Service(place, "--workers", "2") as service,
        # Connected before, since the supervisor gives it only so long.
        shop(place).replace(limits=limits) as publisher,
    ):
        service.until_ready(2)
        publish(place, 1, kind="commit")
        service.until(lambda: 1 in service.ended("commit"), "a transaction that hangs")
        [frozen] = {pid for said, _, pid in service.said if said == "commit"}
        os.kill(frozen, signal.SIGSTOP)
        open_all(place)  # for the next one; this one does not see it
        with pytest.raises(StorageError, match=f"process {frozen} has held the lock for 0.4 s"):
            publisher.submit(Job(2)).result(PATIENCE_S)
        service.until_logged(f"(process {frozen}) has given no sign of life for 5 s")
        service.until_done(1)
        assert not lives(frozen)
        publish(place, 3)
        service.until_done(3)
        service.until_ready(3)
        service.send(signal.SIGTERM)
        assert service.wait() == 0, service.log
    assert (account_of(place).done, account_of(place).open) == (2, 0)


def test_health_names_what_stands_still(place: Path) -> None:
    be_impatient(place)
    with Service(place, *HEALTH) as service:
        service.until_logged("health: http://")
        service.until_ready_is_said()
        publish(place, 1, 2, 3, kind="wait")
        found = service.until_reason("no-progress")
        assert re.search(r"group work: jobs\[\d\] has waiting events and makes", found["detail"])
        open_all(place)
        service.until_done(1, 2, 3)
        service.until_ready_is_said()

        (place / "open").unlink()
        publish(place, 4, kind="wait")
        service.until_begun(4)
        with storage_held(place):
            open_all(place)
            found = service.until_reason("storage")
            assert "has held the lock for 1.5 s" in found["detail"]
        service.until_ready_is_said()
        service.send(signal.SIGTERM)
        assert service.wait() == 0


def test_a_blocked_event_loop_is_not_live(place: Path) -> None:
    be_impatient(place)
    with Service(place, *HEALTH) as service:
        service.until_logged("health: http://")
        publish(place, 1, kind="block")
        service.until_begun(1)
        service.until(lambda: service.ask("/live") == (503, {"live": False}), "/live to say 503")
        service.until_reason("stalled")
        open_all(place)
        service.until(lambda: service.ask("/live") == (200, {"live": True}), "/live to say 200")


def test_a_change_of_a_file_starts_the_workers_anew(place: Path) -> None:
    shop = place / "shop.py"
    shop.write_text("from tests.crash.served import app\nimport nothing_of_the_kind\n")
    with Service(place, "--reload", app="shop:app", cwd=place) as service:
        service.until_logged("imports 'nothing_of_the_kind', which is not installed here")
        service.until_logged("watching 1 .py files")
        shop.write_text("from tests.crash.served import app\n")
        [before] = service.until_ready(1)
        shop.write_text("from tests.crash.served import app, Job, say\nsay('end', Job(7))\n")
        service.until_done(7)
        assert service.until_ready(2)[0] == before
        assert not lives(before)
        service.send(signal.SIGTERM)
        assert service.wait() == 0


# --- workers that do not do what they are told ------------------------------------------------

DEAF = """
import socket, sys
link = socket.socket(fileno=int(sys.argv[-1]))
link.sendall(sys.argv[1].encode() + b"\\n")
link.recv(1)
"""
"""It never looks at its signals; what it reports is an argument."""


def deaf(*, stalled_s: float = 0.0) -> Supervisor:
    report = Report(
        state="ready", stalled_s=stalled_s, stall_s_max=5, lease_s=9, drain_s=0.1, stuck_s=300
    )
    command = (sys.executable, "-c", DEAF, msgspec.json.encode(report).decode())
    return Supervisor(command, workers=1)


async def test_a_worker_that_does_not_drain_is_killed_and_said_to_have_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("eventlane.supervisor._EXTRA_S", 0.1)
    supervisor = deaf()
    running = asyncio.ensure_future(supervisor.run())
    await until(lambda: "is ready" in caplog.text, "that it is ready")
    supervisor._asked_to_stop(signal.SIGTERM)
    assert await running == 1
    assert "has not drained within 0.3 s: killing it" in caplog.text


async def test_a_worker_whose_event_loop_is_stuck_is_killed_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    supervisor = deaf(stalled_s=301)
    running = asyncio.ensure_future(supervisor.run())
    await until(lambda: "starts again in 0.5 s" in caplog.text, "that another one is to start")
    assert "has an event loop that is blocked for 300 s (stuck_s): killing it" in caplog.text
    supervisor._asked_to_stop(signal.SIGTERM)
    assert await running == 0
