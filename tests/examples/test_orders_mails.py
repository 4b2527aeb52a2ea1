"""Mails over real SMTP, to the embedded server in its own process."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from examples.orders import source
from examples.orders.mails import AcceptedMails
from examples.orders.notification import MailDeferred, MailRefused, Notifier
from examples.orders.smtp_server import SmtpServer, embedded_smtp_server

ORDER = next(source.orders())


def with_server(
    path: Path, scenario: Callable[[SmtpServer], Coroutine[Any, Any, None]], fault_share: float
) -> tuple[int, int]:
    """Run a scenario and return how many mails were accepted, and how many distinct ones."""
    database = path / "mails.db"

    async def run() -> tuple[int, int]:
        async with embedded_smtp_server(database, seed=7, fault_share=fault_share) as server:
            await scenario(server)
        mails = AcceptedMails(database)
        counts = mails.counts()
        await mails.close()
        return counts

    return asyncio.run(run())


def test_a_mail_that_is_deferred_is_accepted_when_it_is_sent_again(tmp_path: Path) -> None:
    async def scenario(server: SmtpServer) -> None:
        notifier = Notifier(server.host, server.port)
        waiting = {uuid4() for _ in range(300)}
        deferrals = 0
        while waiting:
            ids = list(waiting)
            answers = await asyncio.gather(
                *(notifier.mail(event_id, ORDER) for event_id in ids), return_exceptions=True
            )
            assert {type(answer) for answer in answers} <= {type(None), MailDeferred}
            waiting = {each for each, no in zip(ids, answers, strict=True) if no is not None}
            deferrals += len(waiting)
        assert 5 <= deferrals <= 60  # about one in 20
        await notifier.close()

    assert with_server(tmp_path, scenario, fault_share=0.05) == (300, 300)


def test_a_mail_that_is_sent_twice_has_one_message_id(tmp_path: Path) -> None:
    event_id = uuid4()

    async def scenario(server: SmtpServer) -> None:
        notifier = Notifier(server.host, server.port)
        await notifier.mail(event_id, ORDER)
        await notifier.mail(event_id, ORDER)
        await notifier.close()

    assert with_server(tmp_path, scenario, fault_share=0) == (2, 1)


def test_what_was_accepted_survives_a_kill_of_the_mail_server(tmp_path: Path) -> None:
    async def scenario(server: SmtpServer) -> None:
        notifier = Notifier(server.host, server.port)
        await notifier.mail(uuid4(), ORDER)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await notifier.close()

    assert with_server(tmp_path, scenario, fault_share=0) == (1, 1)


class Mailbox:
    """A mail server of somebody else, who says no to some."""

    def __init__(self) -> None:
        self.recipients: list[str] = []

    async def handle_RCPT(  # noqa: N802  # aiosmtpd finds it by this name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if len(self.recipients) == 1:
            self.recipients.append("refused")
            return "550 no such household"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802  # aiosmtpd finds it by this name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.recipients += envelope.rcpt_tos
        return "250 OK"


def test_with_a_foreign_mail_server_the_notifier_keeps_the_account_itself(tmp_path: Path) -> None:
    mailbox = Mailbox()

    async def run() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(mailbox, hostname="localhost"), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        mails = AcceptedMails(tmp_path / "mails.db")
        notifier = Notifier("127.0.0.1", port, accepted=mails)
        await notifier.mail(uuid4(), ORDER)
        with pytest.raises(MailRefused, match="550 no such household"):
            await notifier.mail(uuid4(), ORDER)
        await notifier.mail(uuid4(), ORDER)
        await notifier.close()
        counts = mails.counts()
        await mails.close()
        server.close()
        return counts

    assert asyncio.run(run()) == (2, 2)
    address = "household-900@customers.example"
    assert mailbox.recipients == [address, "refused", address]
