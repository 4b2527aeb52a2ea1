"""The web shop, with a warehouse that fails first."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from eventlane import App
from eventlane.testing import ManualClock
from examples.fastapi_shop.shop import app, create_api

pytestmark = pytest.mark.asyncio


class Warehouse:
    """Stands for the real one: answers with these status codes, then with 200."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.parcels: dict[str, str] = {}

    @asynccontextmanager
    async def client(self, _: App) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.MockTransport(self.answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://warehouse") as client:
            yield client

    def answer(self, request: httpx.Request) -> httpx.Response:
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.parcels[request.headers["Idempotency-Key"]] = json.loads(request.content)["item"]
        return httpx.Response(status, text="no such item" if status == 422 else "")


@asynccontextmanager
async def web_client(shop: App) -> AsyncIterator[httpx.AsyncClient]:
    api = create_api(shop)
    async with (
        api.router.lifespan_context(api),
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop") as client,
    ):
        yield client


async def test_an_order_reaches_the_warehouse_although_that_fails_twice() -> None:
    warehouse = Warehouse(503, 503)
    shop = app.replace(url="embedded::memory:", lifespan=warehouse.client, clock=ManualClock())
    async with web_client(shop) as client:
        answer = await client.post("/orders", json={"customer": "ada", "item": "tea"})
        assert answer.status_code == 202
        await shop.run_until_idle()
        assert (await client.get("/health")).json()["warehouse"] == {
            "members": 1,
            "open": 0,
            "dead": 0,
        }
    assert list(warehouse.parcels.values()) == ["tea"]


async def test_an_order_that_the_warehouse_refuses_does_not_hold_up_the_next() -> None:
    warehouse = Warehouse(422)
    shop = app.replace(url="embedded::memory:", lifespan=warehouse.client, clock=ManualClock())
    async with web_client(shop) as client:
        for item in ("unicorn", "tea"):
            await client.post("/orders", json={"customer": "ada", "item": item})
        await shop.run_until_idle()
        [letter] = await shop.dead_letters(group="warehouse")
    assert letter.error_message == "no such item"
    assert list(warehouse.parcels.values()) == ["tea"]


async def test_what_is_no_order_is_refused_and_nothing_is_published() -> None:
    shop = app.replace(url="embedded::memory:", lifespan=Warehouse().client)
    async with web_client(shop) as client:
        answer = await client.post("/orders", json={"customer": "ada"})
        assert answer.status_code == 422
        assert (await shop.status()).topics["orders"].published == 0
