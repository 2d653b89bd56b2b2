"""The page as it is on the Hub: in a frame of another site, and with a model that could not be fetched."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Frame, Page, expect

import cpgpt
from tests.browser.conftest import Watch
from tests.house import House, free_port

import app  # isort: skip

AROUND = "https://around.example/"  # the page around the frame; the browser asks nobody for it
NO_MEMORY = """Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } })"""


@pytest.fixture(params=["a frame that may remember", "a frame that may not"])
def framed(request: pytest.FixtureRequest, house: House, chromium: Browser) -> Iterator[tuple[Page, Frame]]:
    context = chromium.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    if request.param == "a frame that may not":  # as where a visitor keeps other sites' cookies out
        context.add_init_script(f"if (window !== top) {NO_MEMORY}")
    markup = f'<iframe src="{house.url}/" style="position: fixed; inset: 0; width: 100%; height: 100%; border: 0"></iframe>'
    context.route(
        AROUND, lambda route: route.fulfill(body=f"<!doctype html><title>around</title>{markup}", content_type="text/html")
    )
    page = context.new_page()
    watch = Watch(house.url)
    watch.own = (AROUND,)
    watch.page(page)
    page.goto(AROUND)
    frame = page.frame(url=f"{house.url}/")
    assert frame is not None
    frame.wait_for_selector(".stage.ready")
    yield page, frame
    context.close()
    assert not watch.faults, watch.faults


def test_a_scene_is_written_and_shared_from_inside_a_frame(framed: tuple[Page, Frame], house: House) -> None:
    page, frame = framed
    frame.click(".write")
    frame.wait_for_selector(".after:not([hidden])")
    frame.click("[data-do=link]")
    expect(frame.locator(".said")).to_contain_text("Link copied")  # the frame may not use the clipboard's own interface
    page.evaluate("document.body.append(document.createElement('textarea'))")
    page.locator("textarea").evaluate("area => area.focus()")
    page.keyboard.press("Control+V")
    link = page.locator("textarea").input_value()
    seed = frame.inner_text("[data-do=seed]").split()[1]
    assert link.startswith(f"{house.url}/#")  # the house's own address: it opens without what is around it
    assert f"seed={seed}" in link


def test_the_lamp_and_the_view_work_without_a_memory(framed: tuple[Page, Frame]) -> None:
    _, frame = framed
    dark = frame.evaluate("document.body.classList.contains('dark')")
    frame.click(".lamp")
    assert frame.evaluate("document.body.classList.contains('dark')") is not dark
    frame.click(".write")
    frame.wait_for_selector(".after:not([hidden])")
    frame.click("[data-view=script]")
    expect(frame.locator(".script")).to_have_class("script as-script")


def test_the_page_says_that_its_model_could_not_be_fetched(chromium: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPGPT_MODEL", "you/<b>nobody</b>")
    page_of_the_house, url = app.launch(*app.writer_and_notice(), server_port=free_port())
    try:
        context = chromium.new_context(reduced_motion="reduce")
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector(".stage.ready")
        expect(page.locator("#masthead .notice")).to_be_visible()
        expect(page.locator("#masthead .notice")).to_contain_text("The model you/<b>nobody</b> could not be loaded")
        expect(page.locator(".foot")).to_contain_text(cpgpt.load().name)
        page.click(".write")
        page.wait_for_selector(".after:not([hidden])")
        context.close()
    finally:
        page_of_the_house.close()
