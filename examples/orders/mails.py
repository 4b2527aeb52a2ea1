"""Which mails were accepted, durably: the account that the report compares with the orders.

The embedded SMTP server writes it before it answers "250", as a mail server must. With an SMTP
server of somebody else the notifier writes it after the answer: a process killed between the two
sends that mail again and records it once.
"""

from pathlib import Path

from .database import Database

__all__ = ["AcceptedMails"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS accepted (
    message_id TEXT NOT NULL, recipient TEXT NOT NULL, at TEXT NOT NULL
);
"""


class AcceptedMails:
    """One row for every mail that was accepted; a mail that was accepted twice has two."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, SCHEMA)

    async def record(self, message_id: str, recipient: str) -> None:
        """Note a mail, with the time. It is on the disk when this returns."""
        await self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO accepted VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%fZ'))",
                (message_id, recipient),
            )
        )

    def counts(self) -> tuple[int, int]:
        """Return how many mails were accepted, and how many distinct Message-IDs they have."""
        ((accepted, distinct),) = self._database.query(
            "SELECT COUNT(*), COUNT(DISTINCT message_id) FROM accepted"
        )
        return accepted, distinct

    async def close(self) -> None:
        """Close the file after the writes that are under way."""
        await self._database.close()
