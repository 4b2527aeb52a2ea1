"""Servers for the peers: on loopback, in a private directory, gone afterwards."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

PATIENCE_S = 60.0

KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={directory}/log
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""
CLUSTER_ID = "cGVlcnMtcGVlcnMtcGVlcg"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.asynccontextmanager
async def running(directory: Path, port: int, *command: str) -> AsyncGenerator[None]:
    """A server, from when it answers on its port until the end of the body."""
    log = directory / "server.log"
    with log.open("wb") as out:
        server = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, cwd=directory
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if server.returncode is not None:
                    raise SystemExit(f"{command[0]} ended:\n{log.read_text()[-2000:]}")
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.1)
                    continue
                writer.close()
                break
        yield
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


@contextlib.asynccontextmanager
async def nats(directory: Path) -> AsyncGenerator[str]:
    program = shutil.which("nats-server")
    if program is None:
        raise SystemExit("expected nats-server on the PATH, found none: README.md says how")
    (port,) = free_ports(1)
    where = ("-a", "127.0.0.1", "-p", str(port))
    async with running(directory, port, program, "-js", "-sd", f"{directory}/js", *where):
        yield f"nats://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def redis(directory: Path, fsync: str) -> AsyncGenerator[str]:
    """With an append-only file; `fsync` is "always", "everysec" (its default), or "no".

    `always`: a command is answered when it is on the disk, and those of a pipeline share the sync.
    `everysec` may lose the last second with the machine, and nothing with the server alone.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("expected redis-server on the PATH, found none: README.md says how")
    (port,) = free_ports(1)
    where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory))
    kept = ("--save", "", "--appendonly", "yes", "--appendfsync", fsync)
    async with running(directory, port, program, *where, *kept):
        yield f"redis://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def kafka(directory: Path, jars: Path) -> AsyncGenerator[str]:
    port, controller = free_ports(2)
    properties = directory / "server.properties"
    properties.write_text(
        KAFKA_PROPERTIES.format(port=port, controller=controller, directory=directory)
    )
    java = ("java", "-Xmx512m", "-cp", f"{jars}/*")
    formatting = await asyncio.create_subprocess_exec(
        *(*java, "kafka.tools.StorageTool", "format", "--standalone"),
        *("-t", CLUSTER_ID, "-c", str(properties)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await formatting.wait():
        raise SystemExit("Kafka could not format its directory")
    async with running(directory, port, *java, "kafka.Kafka", str(properties)):
        yield f"127.0.0.1:{port}"
