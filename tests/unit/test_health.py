"""Health: where it is served, what it answers, and what stands still."""

import asyncio
import http.client
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventlane import App, ConfigError, Context, Dead, Limits, Topic, event
from eventlane.cli import main
from eventlane.health import Address, Answer, HealthServer, Reason, ready
from eventlane.testing.stage import until
from eventlane.vitals import Progress, Vitals

ANYWHERE = Address("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        (":8080", "127.0.0.1", 8080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:8080", "::1", 8080),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert Address.of(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["8080", "", ":", "::1:8080", "localhost", "a:65536", "a:b", "a/b:1"]
)
def test_what_is_no_address_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected HOST:PORT.*0\.0\.0\.0:8080"):
        Address.of(text)


def test_an_address_is_written_as_it_is_read() -> None:
    assert [str(Address.of(text)) for text in ("[::1]:80", ":80")] == ["[::1]:80", "127.0.0.1:80"]


def test_a_port_in_use_ends_the_command_and_says_how_to_find_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served_shop.py").write_text("from eventlane import App\napp = App('embedded:d')\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more in ([], ["--workers", "2"]):
            assert main(["run", "served_shop:app", "--health", f":{port}", *more]) == 2
            said = capsys.readouterr().err
            assert f"--health 127.0.0.1:{port}: expected a free port" in said
            assert f"ss -ltnp 'sport = :{port}'" in said


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected an address of this machine"):
        HealthServer(Address("192.0.2.1", 0), {})


def ask(address: Address, page: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        connection.request(method, page)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_pages_are_served_by_their_path_and_others_are_named() -> None:
    pages = {"/ready": lambda: ready([]), "/more": lambda: Answer(200, b"1\n", "text/plain")}
    with HealthServer(ANYWHERE, pages) as server:
        assert ask(server.address, "/ready?x=1")[0] == 200
        assert ask(server.address, "/more") == (200, "text/plain", b"1\n")
        assert ask(server.address, "/more", "HEAD") == (200, "text/plain", b"")
        assert ask(server.address, "/less")[::2] == (404, b'{"pages":["/more","/ready"]}')
        assert ask(server.address, "/ready", "POST")[0] == 501


def test_it_is_served_by_ipv6() -> None:
    try:
        server = HealthServer(Address("::1", 0), {"/ready": lambda: ready([])})
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert ask(server.address, "/ready")[0] == 200


def test_reasons_are_told_and_make_it_503() -> None:
    status, body, _ = ready([Reason(reason="draining", detail="why", worker=2)])
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "reasons": [{"reason": "draining", "detail": "why", "worker": 2}],
    }


# --- what stands still ------------------------------------------------------------------------


@event(topic=Topic("jobs", partitions=1), key="key")
class Job(msgspec.Struct):
    key: str
    fate: str = "done"


class Works:
    """An app with a group that handles one event at a time, when it may."""

    def __init__(self, **options: Any) -> None:
        self.may_go_on = asyncio.Event()
        self.begun = asyncio.Event()
        self.app = App("embedded::memory:", limits=Limits(progress_s_max=60))
        self.app.subscribe(Job, group="work", concurrency=1, **options)(self.handle)

    async def handle(self, job: Job, ctx: Context) -> Dead | None:
        self.begun.set()
        await self.may_go_on.wait()
        return Dead("as told") if job.fate == "dead" else None

    @property
    def partitions(self) -> Any:
        return {each.plan.name: each.partitions for each in self.app._dispatchers}


async def test_a_partition_with_waiting_events_is_named_when_none_ends_for_too_long() -> None:
    works, progress = Works(), Progress(60)
    async with works.app, works.app.handling():
        await works.app.publish_many([Job("a"), Job("b")])
        await works.begun.wait()
        assert progress.look(works.partitions, 1000) == []
        assert progress.look(works.partitions, 1060) == []
        [found] = progress.look(works.partitions, 1095)
        assert found.startswith("group work: jobs[0] has waiting events and makes no progress")
        assert found.endswith("so for 95 s (Limits.progress_s_max=60)")
        works.may_go_on.set()
        await works.app.run_until_idle(timeout_s=10)
        assert progress.look(works.partitions, 2000) == []


async def test_a_stopped_partition_is_named_with_what_to_do() -> None:
    works, progress = Works(on_dead="stop", ordering="partition"), Progress(60)
    works.may_go_on.set()
    async with works.app, works.app.handling():
        await works.app.publish(Job("a", "dead"))
        await works.app.run_until_idle(timeout_s=10)
        progress.look(works.partitions, 0)
        [found] = progress.look(works.partitions, 61)
        assert "jobs[0] is stopped by the dead letter at offset 0: replay or archive it" in found


async def test_a_group_that_was_paused_stands_still_on_purpose() -> None:
    works = Works()
    async with works.app, works.app.handling():
        await works.app.publish_many([Job("a"), Job("b")])
        await works.begun.wait()
        vitals = Vitals(Limits(progress_s_max=1e-9))
        vitals.handles(works.app._dispatchers, works.app._connected, works.app._clock)
        vitals._look()
        vitals._turned_s += 1
        vitals._look()
        assert [each.reason for each in vitals.report().all_reasons] == ["no-progress"]
        await works.app.pause("work", reason="for a while")
        [dispatcher] = works.app._dispatchers
        await until(lambda: dispatcher.paused is not None, "that it is paused")
        vitals._look()
        assert not vitals.report().all_reasons
        works.may_go_on.set()
