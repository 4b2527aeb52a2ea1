"""Records a file of the present format, for the tests of all later ones.

Run it once for each new format, before it is released, at the root of the repository:
`.venv/bin/python -m tests.data.record`. It writes `format-N.sql`, and what has to be found in it.
"""

import asyncio
import itertools
import json
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from eventlane import App, Context, Dead, Retry, Skipped, Topic, event
from eventlane.brokers.embedded.file import FORMAT_VERSION
from eventlane.cli.output import plain
from eventlane.failure import HOST

DATA = Path(__file__).parent
_PATIENCE_S = 30.0
_AGES = ("absent_s", "is_absent", "as_of", "disk_bytes")
"""What changes by itself, or with SQLite."""


@event(topic=Topic("orders", partitions=2, retention_s=90 * 86_400), key="customer")
class Ordered(msgspec.Struct, frozen=True):
    customer: str
    quantity: int


class Broken(Exception):
    """Dead at once."""


def app_of(directory: Path) -> App:
    """The app whose file it is: with what each table is for."""
    app = App(f"embedded:{directory}", name="shop", version="1", durability="os", allow_edit=True)

    @app.subscribe(Ordered, group="stock", retry=Retry(rules=[(Broken, Dead())]))
    async def stock(ordered: Ordered, ctx: Context) -> Skipped | None:
        if ordered.quantity == 0 and not ctx.replayed:
            raise Broken(ordered.customer)
        return Skipped("none") if ordered.quantity < 0 else None

    @app.subscribe(Ordered, group="mails", retry=Retry(attempts=9, delay_s=3600, delay_s_max=3600))
    async def mail(ordered: Ordered, ctx: Context) -> None:
        if ordered.customer == "late":
            raise OSError("the server is out")

    return app


async def account(directory: Path) -> dict[str, Any]:
    """What a file has, as the API says it."""
    app = app_of(directory)
    async with app:
        letters = await app.dead_letters(state=None)
        found = {
            "status": plain(await app.status()),
            "letters": plain(letters),
            "histories": {str(each.id): plain(await app.history(each)) for each in letters},
            "operations": plain(await app.operations()),
            "log": [plain(message) async for message in app.read("orders", "orders.stock.dlq")],
        }
    known: dict[str, Any] = json.loads(json.dumps(found), object_pairs_hook=_without_ages)
    return known


def _without_ages(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if name not in _AGES}


async def _fill(directory: Path) -> None:
    app = app_of(directory)
    async with app, app.handling():
        names = itertools.cycle(("ada", "bob", "cid", "dan", "late"))
        await app.publish_many(
            Ordered(next(names), quantity) for quantity in (1, 0, 2, 0, 1, 5, 6, 0, -1, 4, 3, 2)
        )
        while (status := await app.status()).groups["stock"].open or not status.groups[
            "mails"
        ].parked:
            await app._moved()  # waits as `Operation.wait` does
        first, second, *_ = [each.id for each in await app.dead_letters(group="stock")]
        await (await app.replay([first], reason="mended", actor="ada")).wait()
        await (await app.archive([second], reason="nobody needs it", actor="bob")).wait()
        await app.pause("mails", reason="the server is out", actor="bob")
    async with app:  # nobody handles it: the operation waits
        await app.replay("group:stock", reason="later", actor="ada")


def dump(path: Path) -> str:
    """The file as SQL, with what says that it is one of Eventlane's."""
    with closing(sqlite3.connect(path)) as connection:
        header = [
            f"PRAGMA {name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]};"
            for name in ("application_id", "user_version")
        ]
        sql = "\n".join((*header, *connection.iterdump(), ""))
    # Where it was recorded is nobody's business.
    return re.sub(rf"\b{HOST}\b", "host-1", sql.replace(str(DATA.parents[1]), "/srv/shop"))


def restore(sql: str, directory: Path) -> None:
    """Make the file again."""
    with closing(sqlite3.connect(directory / "eventlane.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 16384")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(sql)


def _record() -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_fill(Path(directory)))
        sql = dump(Path(directory) / "eventlane.db")
    with tempfile.TemporaryDirectory() as directory:
        restore(sql, Path(directory))
        found = asyncio.run(account(Path(directory)))
    (DATA / f"format-{FORMAT_VERSION}.sql").write_text(sql, "utf-8")
    text = json.dumps(found, indent=1, sort_keys=True)
    (DATA / f"format-{FORMAT_VERSION}.json").write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    _record()
