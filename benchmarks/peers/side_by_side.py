"""`python -m benchmarks --peers`: the same job on Eventlane and on others, in one table.

One process publishes typed orders of some 100 bytes, and another one handles each of them. It is
measured how fast they are published while nobody handles them, and from the first publish until
the last one was handled while both run. Each peer has its fastest settings; what they are, where
they come from and what is durable then stands beside its figures.
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Result, Row, rounded
from benchmarks.peers import servers

__all__ = ["PEERS", "Peer", "measure", "results_of", "show"]

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv/peers/bin/python"
PATIENCE_S = 60.0
ROUNDS = 3
WIDTH_MIN = 130
"""What the table needs."""
FASTSTREAM = "https://faststream.ag2.ai/latest/"

Server = Literal["", "nats", "jetstream", "redis-always", "redis-everysec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to do the job."""

    name: str
    module: str
    count: int
    """How many orders; so many that it takes some seconds end to end."""
    durable: str
    """What an accepted publish survives."""
    settings: str
    page: str
    server: Server = ""
    variant: str = ""
    """What its files' directory is followed by."""
    target: str | None = None
    """For the ratio of the end to end rates."""


OURS = Peer(
    name="Eventlane",
    module="eventlane_embedded",
    count=1_200_000,
    durable="power loss",
    settings="defaults; publish_many; keyed, 8 partitions, 100 lanes at once",
    page="README.md",
)
PEERS = (
    Peer(
        name="FastStream, NATS",
        module="faststream_nats",
        count=40_000,
        server="nats",
        durable="nothing",
        settings="uvloop, apply_types=False, msgspec codec, max_workers=1 (more are slower)",
        page=FASTSTREAM + "getting-started/serialization/codec/",
        target=">= 20",
    ),
    Peer(
        name="FastStream, JetStream",
        module="faststream_jetstream",
        count=20_000,
        server="jetstream",
        durable="server's end",
        settings="the same; 200 publishes in flight, push consumer with a queue group, acks",
        page=FASTSTREAM + "nats/jetstream/",
    ),
    Peer(
        name="FastStream, Redis Streams",
        module="faststream_redis",
        count=8_000,
        server="redis-always",
        durable="power loss",
        settings="the same; pipelines of 1,000, group, reads of 1,000, 100 workers, single acks",
        page=FASTSTREAM + "redis/streams/groups/",
    ),
    Peer(
        name="FastStream, Redis Streams, lists",
        module="faststream_redis_lists",
        count=75_000,
        server="redis-always",
        durable="power loss",
        settings="the same with batch=True: handler and ack for lists of up to 1,000",
        page=FASTSTREAM + "redis/streams/batch/",
    ),
    Peer(
        name="redis-py, Streams, synced",
        module="redis_streams",
        count=150_000,
        server="redis-always",
        durable="power loss",
        settings="uvloop, hiredis; pipelines of 1,000 XADD; XREADGROUP COUNT 1000, XACK of all",
        page="https://redis.io/docs/latest/develop/clients/redis-py/transpipe/",
    ),
    Peer(
        name="redis-py, Streams",
        module="redis_streams",
        count=200_000,
        server="redis-everysec",
        durable="server's end",
        settings="the same with appendfsync everysec, which Redis recommends",
        page="https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/",
    ),
    Peer(
        name="huey, SQLite, synced",
        module="huey_sqlite",
        count=4_000,
        durable="power loss",
        settings="fsync=True, results=False, one worker thread, polls each 1 ms",
        page="https://huey.readthedocs.io/en/latest/api.html#SqliteHuey",
    ),
    Peer(
        name="huey, SQLite",
        module="huey_sqlite",
        variant=",nosync",
        count=20_000,
        durable="process's end",
        settings="the same with fsync=False",
        page="https://huey.readthedocs.io/en/latest/api.html#SqliteHuey",
    ),
    Peer(
        name="litequeue, SQLite, synced",
        module="litequeue_sqlite",
        variant=",full",
        count=3_000,
        durable="power loss",
        settings="synchronous=FULL, a loop of pop, handle, done; prune for each 500",
        page="https://github.com/litements/litequeue",
    ),
    Peer(
        name="litequeue, SQLite",
        module="litequeue_sqlite",
        count=12_000,
        durable="process's end",
        settings="the same as it comes: synchronous=NORMAL",
        page="https://github.com/litements/litequeue",
    ),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Orders a second."""

    publish: float
    end_to_end: float


# --- one peer, once ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def place_of(peer: Peer, directory: Path) -> AsyncGenerator[str]:
    """Where the orders go: a URL, or a directory."""
    match peer.server:
        case "nats" | "jetstream":
            async with servers.nats(directory) as url:
                yield url
        case "redis-always" | "redis-everysec":
            async with servers.redis(directory, peer.server.removeprefix("redis-")) as url:
                yield url
        case _:
            yield f"{directory}{peer.variant}"


@contextlib.asynccontextmanager
async def job(
    peer: Peer, role: str, place: str, count: int
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process of the job, once it is ready; it is killed at the end of the body."""
    python = Path(sys.executable) if peer is OURS else PYTHON
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", f"benchmarks.peers.{peer.module}", role, place, str(count)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    )
    try:
        if (said := await line_of(process, peer)) != b"ready\n":
            raise SystemExit(f"{peer.name}: expected that it is ready, got {said!r}")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: asyncio.subprocess.Process, peer: Peer) -> bytes:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await process.stdout.readline()
    except TimeoutError:
        raise SystemExit(f"{peer.name}: expected an answer within {PATIENCE_S:g} s") from None


async def moments_of(process: asyncio.subprocess.Process, peer: Peer) -> dict[str, int]:
    line = await line_of(process, peer)
    if not line:
        raise SystemExit(
            f"{peer.name}: its process ended before it was done; what it said is above"
        )
    moments: dict[str, int] = json.loads(line)
    return moments


async def published(publisher: asyncio.subprocess.Process, peer: Peer) -> dict[str, int]:
    assert publisher.stdin is not None
    publisher.stdin.write(b"go\n")
    return await moments_of(publisher, peer)


async def rates_of(peer: Peer, directory: Path, count: int) -> Rates:
    alone_in, both_in = directory / "alone", directory / "both"
    for each in (alone_in, both_in):
        each.mkdir()  # nothing else runs
    async with (
        place_of(peer, alone_in) as place,
        job(peer, "publish", place, count) as publisher,
    ):
        alone = await published(publisher, peer)
    async with (
        place_of(peer, both_in) as place,
        job(peer, "handle", place, count) as worker,
        job(peer, "publish", place, count) as publisher,
    ):
        both = await published(publisher, peer)
        handled = await moments_of(worker, peer)
    return Rates(
        count / (alone["end_ns"] - alone["start_ns"]) * 1e9,
        count / (handled["end_ns"] - both["start_ns"]) * 1e9,
    )


# --- all of them, in turns --------------------------------------------------------------------


async def measure(
    peers: Sequence[Peer] = PEERS, *, rounds: int = ROUNDS, scale: float = 1.0
) -> dict[str, list[Rates]]:
    """Each peer and Eventlane, once in each round; by name."""
    found: dict[str, list[Rates]] = {peer.name: [] for peer in (OURS, *peers)}
    for _ in range(rounds):
        for peer in (OURS, *peers):
            with tempfile.TemporaryDirectory(prefix="eventlane-peers-") as directory:
                count = max(100, int(peer.count * scale))
                found[peer.name].append(await rates_of(peer, Path(directory), count))
    return found


def results_of(found: dict[str, list[Rates]], peers: Sequence[Peer] = PEERS) -> list[Result]:
    """Two rows for each peer: Eventlane's rates against its own, in the same round."""
    results: list[Result] = []
    for peer in peers:
        for what in ("publish", "end_to_end"):
            ours: list[float] = [getattr(each, what) for each in found[OURS.name]]
            theirs: list[float] = [getattr(each, what) for each in found[peer.name]]
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            name = f"{peer.module}_{peer.server or peer.variant[1:]}".strip("_").replace("-", "_")
            row = Row(
                name=f"peer_{name}_{what}",
                value=rounded(statistics.median(ours)),
                unit="events/s",
                baseline=f"{peer.name}: {peer.settings}",
                baseline_value=rounded(statistics.median(theirs)),
                ratio=rounded(statistics.median(ratios)),
                target=peer.target if what == "end_to_end" else None,
                repeats=len(ratios),
            )
            results.append(Result(row=row, spread=(min(ratios), max(ratios))))
    return results


def show(console: Console, found: dict[str, list[Rates]], peers: Sequence[Peer] = PEERS) -> None:
    """The table, and below it the settings and where they come from."""
    shown = Table(title="One process publishes, another one handles; ratio: Eventlane to the peer")
    for heading in ("", "publish/s", "ratio", "end to end/s", "ratio", "min - max"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("publish survives", "target"):
        shown.add_column(heading, no_wrap=True)

    def median(peer: Peer, what: str) -> str:
        return (
            f"{rounded(statistics.median(getattr(each, what) for each in found[peer.name])):,.0f}"
        )

    def ratio(result: Result) -> str:
        return f"{result.row.ratio or 0:,.3g} x"

    shown.add_row(
        OURS.name, median(OURS, "publish"), "", median(OURS, "end_to_end"), "", "", OURS.durable, ""
    )
    rows = results_of(found, peers)
    for peer, publish, end_to_end in zip(peers, rows[::2], rows[1::2], strict=True):
        low, high = end_to_end.spread
        verdict = {None: "", True: ": [green]yes[/green]", False: ": [red]no[/red]"}
        shown.add_row(
            peer.name,
            median(peer, "publish"),
            ratio(publish),
            median(peer, "end_to_end"),
            ratio(end_to_end),
            f"{low:,.3g} - {high:,.3g}",
            peer.durable,
            (end_to_end.row.target or "") + verdict[end_to_end.is_reached],
        )
    console.print(shown)
    for peer in (OURS, *peers):
        console.print(f"{peer.name}: {peer.settings}; {peer.count:,} orders", highlight=False)
        console.print(f"    {peer.page}", highlight=False, style="dim")


def main(rounds: int) -> list[Result]:
    """Install what is missing, measure, show.

    Raises:
        SystemExit: Something cannot be installed; what to type was said.
    """
    install = (str(ROOT / "requirements/peers.sh"),)
    if subprocess.run(install, check=False).returncode:  # noqa: S603  # our own file
        raise SystemExit(1)
    found: dict[str, list[Rates]] = asyncio.run(measure(rounds=rounds))
    console = Console()
    show(console if console.width >= WIDTH_MIN else Console(width=WIDTH_MIN), found)
    return results_of(found)
