"""The orders dashboard without a browser: what it refuses, what it streams, how it ends."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from examples.orders.dashboard import create_dashboard, serve
from tests.examples.dashboard_stage import Loop, served
from tests.examples.fake_shop import FakeShop


@pytest.fixture
def loop() -> Iterator[Loop]:
    started = Loop()
    yield started
    started.close()


def test_serving_ends_within_a_second_though_streams_are_open(loop: Loop) -> None:
    shop = FakeShop()

    async def seconds_to_close() -> tuple[float, str]:
        async with httpx.AsyncClient() as client:
            async with serve(create_dashboard(shop)) as address:
                stream = await client.send(
                    client.build_request("GET", f"{address}stream"), stream=True
                )
                pieces = stream.aiter_text()
                await anext(pieces)
                began_s = asyncio.get_running_loop().time()
            rest = "".join([piece async for piece in pieces])
            return asyncio.get_running_loop().time() - began_s, rest

    seconds, rest = loop.run(seconds_to_close())
    assert seconds < 1
    assert "event: bye" in rest


def test_the_stream_repeats_no_fragment_that_has_not_changed(loop: Loop) -> None:
    shop = FakeShop()
    shop.advance(1_000)

    async def events_until(beats: int) -> list[str]:
        names: list[str] = []
        async with (
            serve(create_dashboard(shop)) as address,
            httpx.AsyncClient() as client,
            client.stream("GET", f"{address}stream") as stream,
        ):
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                if names.count("beat") == beats:
                    break
        return names

    names = loop.run(events_until(3))
    assert sorted(set(names)) == sorted(names[: names.index("beat") + 1])
    assert names[names.index("beat") :] == ["beat"] * 3


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://elsewhere.test"},
        {"Origin": "null"},
        {},
    ],
)
@pytest.mark.parametrize("path", ["rebuild", "theme"])
def test_a_change_that_another_site_asks_for_is_refused(
    loop: Loop, headers: dict[str, str], path: str
) -> None:
    shop = FakeShop()
    with served(loop, shop) as address:
        answer = httpx.post(address + path, headers=headers, data={"theme": "dark"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert shop.rebuilds_asked == 0


def test_another_host_name_is_refused_so_that_rebinding_does_not_help(loop: Loop) -> None:
    with served(loop, FakeShop()) as address:
        assert httpx.get(address, headers={"Host": "elsewhere.test"}).status_code == 403
        assert httpx.get(address).status_code == 200


def test_every_answer_carries_the_strict_content_security_policy(loop: Loop) -> None:
    with served(loop, FakeShop()) as address:
        for path in (
            "",
            "figures",
            "dead/OutOfStock",
            "dead/Unheard",
            "static/dashboard.js",
            "nowhere",
        ):
            policy = httpx.get(address + path).headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy


def test_the_theme_form_leads_back_into_the_dashboard_only(loop: Loop) -> None:
    with served(loop, FakeShop()) as address:
        for back in (
            "https://elsewhere.test/",
            "//elsewhere.test/",
            "/\\elsewhere.test",
            "javascript:alert(1)",
        ):
            form = {"theme": "dark", "back": back}
            answer = httpx.post(
                f"{address}theme", headers={"Sec-Fetch-Site": "same-origin"}, data=form
            )
            assert answer.headers["location"] == "/"
