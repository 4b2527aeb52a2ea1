"""A mail server on loopback for the demonstration, in a process of its own.

It speaks real SMTP (aiosmtpd), keeps an account of what it accepted, and answers "451, try again
later" to about one mail in 50, as mail servers do: which one is drawn from a seeded generator for
each attempt anew, so no mail fails for ever. A process of its own, because it takes as much
processor time as the whole order flow (measured: 0.33 ms a mail) and would take it from the flow's
event loop. It ends when its standard input does, so it never outlives the flow.
"""

import argparse
import asyncio
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aiosmtpd.smtp import SMTP, Envelope, Session

from .mails import AcceptedMails

__all__ = ["SmtpServer", "embedded_smtp_server"]

HOST = "127.0.0.1"
MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>\r\n]+>)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class SmtpServer:
    """Where a mail server listens, and its process if that is ours."""

    host: str
    port: int
    pid: int | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Mailbox:
    """What aiosmtpd asks about each mail."""

    def __init__(self, accepted: AcceptedMails, *, seed: int, fault_share: float) -> None:
        self._accepted = accepted
        self._faults = Random(seed)
        self._fault_share = fault_share

    async def handle_DATA(  # noqa: N802  # aiosmtpd finds it by this name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Answer a mail that has arrived as a whole; "250" only when it is on the disk."""
        if self._faults.random() < self._fault_share:
            return "451 4.3.0 The mailbox is busy, try again later"
        found = MESSAGE_ID.search(bytes(envelope.original_content or b""))
        if found is None:
            return "550 5.6.0 Expected a Message-ID header, found none"
        try:
            await self._accepted.record(
                found[1].decode("ascii", "replace"), ",".join(envelope.rcpt_tos)
            )
        except sqlite3.Error as error:
            return f"451 4.3.0 The mail could not be stored: {error}"
        return "250 2.0.0 Accepted"


@asynccontextmanager
async def embedded_smtp_server(
    database: Path, *, seed: int, fault_share: float = 1 / 50
) -> AsyncIterator[SmtpServer]:
    """Run the server for as long as the block.

    Args:
        database: where it keeps its account of mails: an absolute path.
        seed: of the faults.
        fault_share: how many of all attempts it defers.

    Raises:
        RuntimeError: the server's process ended before it listened; what it said is on standard
        error.
    """
    arguments = ["--database", str(database), "--seed", str(seed)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "examples.orders.smtp_server", *arguments, "--fault-share", str(fault_share)),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = await process.stdout.readline()
        if not port:
            raise RuntimeError(
                "expected the mail server to say its port, but its process ended: see above"
            )
        yield SmtpServer(HOST, int(port), process.pid)
    finally:
        process.stdin.close()
        await process.wait()


async def _serve(database: Path, *, seed: int, fault_share: float) -> None:
    # Ctrl-C reaches every process of the terminal; this one must answer until the flow has drained.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    accepted = AcceptedMails(database)
    mailbox = _Mailbox(accepted, seed=seed, fault_share=fault_share)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox, hostname="localhost"), HOST, 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()
    await accepted.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="The demonstration's mail server; it ends with its standard input."
    )
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--fault-share", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.database, seed=options.seed, fault_share=options.fault_share))
