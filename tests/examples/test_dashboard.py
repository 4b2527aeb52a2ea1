"""The orders dashboard in a real browser: true, alive, and readable without scripts."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from examples.orders.dashboard import Rebuild
from tests.examples.dashboard_stage import LOW_CONTRAST, NARROW, WIDE, Loop, Stage, served
from tests.examples.fake_shop import FakeShop

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        missing = "Chromium is missing: install it to look at the dashboard as people will"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    started = Loop()
    yield started
    started.close()


@pytest.fixture
def stage(loop: Loop, browser: Browser) -> Iterator[Stage]:
    shop = FakeShop()
    with served(loop, shop) as address:
        made = Stage(loop, shop, address, browser)
        yield made
        for context in browser.contexts:
            context.close()
    assert made.complaints == []


def figure(page: Page, tile: str) -> Any:
    return page.locator("#figures div", has_text=re.compile(f"^\\s*{tile}")).locator(".figure")


def test_figures_grow_on_the_open_page_without_a_reload(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(1_200))
    page = stage.page()
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    expect(figure(page, "Counted by analytics")).to_have_text("1,200")
    columns_before = page.locator("#orders path.column").first.get_attribute("d")
    stage.loop.call(lambda: stage.shop.advance(400))
    expect(figure(page, "Counted by analytics")).to_have_text("1,600")
    assert page.locator("#orders path.column").first.get_attribute("d") != columns_before
    assert loads == []


def test_an_empty_shop_says_that_it_waits_and_shows_no_axis(stage: Stage) -> None:
    page = stage.page()
    expect(page.locator("h1")).to_contain_text("Waiting.")
    expect(page.locator("#orders")).to_contain_text("No order has been counted yet.")
    expect(page.locator("svg.chart")).to_have_count(0)
    expect(page.locator("#action button")).to_be_disabled()


def test_a_finished_run_says_so_and_says_who_is_needed(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(20_000))
    page = stage.page()
    expect(page.locator("h1")).to_contain_text(
        re.compile(r"Finished\..*dead letters need a person")
    )
    expect(page.get_by_role("article", name="inventory")).to_contain_text("Needs a person")
    expect(page.get_by_role("article", name="analytics")).to_contain_text("All settled")


def test_a_long_range_is_drawn_by_day_and_a_short_one_by_hour(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(1_000))
    page = stage.page()
    expect(page.locator("#orders h2")).to_have_text("Orders per hour")
    stage.loop.call(lambda: stage.shop.advance(9_000))
    expect(page.locator("#orders h2")).to_have_text("Orders per day")


def test_the_column_under_the_pointer_is_read_out_to_the_cent(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(20_000))
    page = stage.page()
    page.locator("#revenue svg.chart").hover(position={"x": 100, "y": 80})
    expect(page.locator("#revenue .readout")).to_have_text(
        re.compile(r"^\w{3} \d+ \w{3} 2017: \$[\d,]+\.\d\d$")
    )
    page.locator("h1").hover()
    expect(page.locator("#revenue .readout")).to_have_text(re.compile(r"1 Jan to \d+ Feb 2017"))


def test_totals_are_called_equal_only_when_they_equal_the_log(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(3_000, backlog=700))
    page = stage.page()
    expect(page.locator("#check")).to_contain_text("Analytics is 700 orders behind the log.")
    stage.loop.call(lambda: stage.shop.advance(20_000))
    expect(page.locator("#check")).to_contain_text("Equal")
    stage.loop.call(lambda: setattr(stage.shop, "log_is_off_by", 2))
    expect(page.locator("#check")).to_contain_text("They differ by 2 orders and $59.00.")


def test_a_rebuild_is_visible_while_it_runs_and_cannot_be_started_twice(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(20_000))
    page = stage.page()
    page.get_by_role("button", name="Rebuild the totals").click()
    expect(page.locator("h1")).to_contain_text("Rebuilding.")
    expect(page.locator("#action button")).to_be_disabled()
    expect(page.locator("#action")).to_contain_text("A rebuild is running.")
    stage.loop.call(
        lambda: setattr(
            stage.shop, "rebuild_state", Rebuild(state="running", done=9_000, total=20_000)
        )
    )
    expect(page.get_by_role("img", name="9,000 of 20,000")).to_be_visible()
    stage.loop.call(
        lambda: setattr(
            stage.shop,
            "rebuild_state",
            Rebuild(state="finished", done=20_000, total=20_000, lasted_s=2),
        )
    )
    expect(page.locator("#rebuild")).to_contain_text(
        "The last rebuild counted 20,000 orders again in 2 s."
    )
    expect(page.locator("#action button")).to_be_enabled()
    assert stage.shop.rebuilds_asked == 1


def test_a_kind_of_dead_letter_leads_to_the_reason_of_each(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(2_000))
    letter = stage.loop.call(
        lambda: stage.shop.fail("UnknownProduct", "order 42: product 4711 is not in the catalogue")
    )
    page = stage.page()
    page.get_by_role("link", name=re.compile("UnknownProduct")).click()
    expect(page.locator("h1")).to_contain_text("The catalogue lacks a product")
    row = page.locator("tbody tr").first
    for words in (
        "product 4711 is not in the catalogue",
        letter.household,
        letter.order_id,
        letter.id,
    ):
        expect(row).to_contain_text(words)
    expect(row.get_by_role("link")).to_have_attribute("href", f"http://127.0.0.1:9/d/{letter.id}")
    stage.loop.call(lambda: stage.shop.fail("UnknownProduct"))
    expect(page.locator("#kind")).to_contain_text(re.compile(r"^\s*\d+dead letters open now"))
    expect(row).to_contain_text("product 4711")


def test_a_message_from_an_order_is_text_and_never_markup(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(100))
    stage.loop.call(lambda: stage.shop.fail("OutOfStock", "<img src=x onerror=alert(1)>"))
    page = stage.page()
    expect(page.locator("#dead")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#dead img").count() == 0


def test_a_click_is_not_lost_when_the_link_is_renewed_under_the_pointer(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(2_000))
    page = stage.page()
    page.get_by_role("link", name=re.compile("OutOfStock")).hover()
    page.mouse.down()
    stage.loop.call(lambda: stage.shop.fail("OutOfStock"))
    stage.loop.call(lambda: stage.shop.advance(100))
    expect(page.locator("#as-of")).to_have_text("12:00:01 UTC")  # comes after the fragments
    page.mouse.up()
    expect(page.locator("h1")).to_contain_text("OutOfStock")


def test_figures_that_cannot_be_read_stay_and_the_page_says_why(stage: Stage) -> None:
    stage.loop.call(lambda: stage.shop.advance(1_000))
    page = stage.page()
    stage.loop.call(
        lambda: setattr(stage.shop, "trouble", "the analytics database does not answer")
    )
    expect(page.locator("#state .banner")).to_have_text(
        "No newer figures: the analytics database does not answer"
    )
    expect(figure(page, "Counted by analytics")).to_have_text("1,000")
    stage.loop.call(lambda: setattr(stage.shop, "trouble", ""))
    expect(page.locator("#state .banner")).to_have_count(0)


def test_a_page_whose_server_went_away_says_so_and_finds_it_again(
    loop: Loop, browser: Browser
) -> None:
    shop = FakeShop()
    loop.call(lambda: shop.advance(1_000))
    with served(loop, shop) as address:
        page = Stage(loop, shop, address, browser).page()
    expect(page.locator("#lost")).to_contain_text(
        "The demo was stopped: these figures are of 12:00:00 UTC"
    )
    expect(page.locator("#link-words")).to_have_text("Stopped")
    expect(figure(page, "Counted by analytics")).to_have_text("1,000")
    loop.call(lambda: shop.advance(500))
    with served(loop, shop, port=int(address.rstrip("/").rpartition(":")[2])):
        expect(figure(page, "Counted by analytics")).to_have_text("1,500", timeout=10_000)
        expect(page.locator("#lost")).to_be_hidden()
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_systems_colours_until_somebody_chooses(
    stage: Stage, scheme: str
) -> None:
    stage.loop.call(lambda: stage.shop.advance(1_000))
    page = stage.page(scheme=scheme)
    body = page.locator("body")
    ground = {"light": "rgb(246, 246, 244)", "dark": "rgb(20, 22, 26)"}
    expect(body).to_have_css("background-color", ground[scheme])
    other = "Dark" if scheme == "light" else "Light"
    page.get_by_role("button", name=other).click()
    expect(page.get_by_role("button", name=other)).to_have_attribute("aria-pressed", "true")
    expect(body).to_have_css("background-color", ground[other.lower()])
    page.get_by_role("button", name="Auto").click()
    expect(page.get_by_role("button", name="Auto")).to_have_attribute("aria-pressed", "true")
    expect(body).to_have_css("background-color", ground[scheme])


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast_and_nothing_scrolls_sideways(
    stage: Stage, scheme: str, size: tuple[int, int]
) -> None:
    stage.loop.call(lambda: stage.shop.advance(5_000))
    page = stage.page(size=size, scheme=scheme)
    for path in ("", "dead/InvalidQuantity", "dead/UnknownProduct", "figures"):
        page.goto(stage.address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_everything_reads_with_scripts_off(stage: Stage, size: tuple[int, int]) -> None:
    stage.loop.call(lambda: stage.shop.advance(20_000))
    page = stage.page(size=size, scripts=False)
    expect(page.locator(".banner.calm")).to_contain_text("Scripts are off")
    expect(figure(page, "Counted by analytics")).to_have_text("20,000")
    expect(page.locator("#orders svg.chart")).to_be_visible()
    page.get_by_role("button", name="Rebuild the totals").click()
    expect(page.locator("#action")).to_contain_text("A rebuild is running.")
    page.get_by_role("link", name=re.compile("InvalidQuantity")).click()
    expect(page.locator("tbody tr").first).to_contain_text("asks for 0 units")
    page.get_by_role("link", name="Figures").click()
    expect(page.get_by_role("heading", name="By department")).to_be_visible()
