"""The page as it is on the Hub: in a frame of another site, and with a model that could not be fetched."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Frame, Page, expect

import cpgpt
from tests.browser.conftest import Visit, Watch
from tests.house import House, free_port

import app  # isort: skip

WHOLE = "position: fixed; inset: 0; width: 100%; height: 100%; border: 0"
NO_MEMORY = """Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } })"""


@contextlib.contextmanager
def page_around(url: str) -> Iterator[str]:
    """Another site (localhost is another one than 127.0.0.1) with a page that is a frame around `url`; gives its address."""

    class Around(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 204)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            if self.path == "/":
                self.wfile.write(f'<!doctype html><title>around</title><iframe src="{url}" style="{WHOLE}"></iframe>'.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Around) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def framed(house: House, chromium: Browser) -> Iterator[tuple[Page, Frame]]:
    """The page, and the frame in it that has ours. Chromium lets such a frame remember nothing."""
    context = chromium.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    watch = Watch(house.url)
    with page_around(f"{house.url}/") as address:
        page = context.new_page()
        watch.own = (address,)
        watch.page(page)
        page.goto(address)
        element = page.wait_for_selector("iframe")
        frame = element.content_frame() if element else None
        assert frame is not None
        frame.wait_for_selector(".stage.ready")
        yield page, frame
        context.close()
    # The browser says on the console that it keeps the frame from the clipboard's own interface; the page has another way.
    faults = [fault for fault in watch.faults if "Clipboard API has been blocked" not in fault]
    assert not faults, faults


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


def all_of_it_works(page: Page | Frame) -> None:
    dark = page.evaluate("document.body.classList.contains('dark')")
    page.click(".lamp")
    assert page.evaluate("document.body.classList.contains('dark')") is not dark
    page.click(".write")
    page.wait_for_selector(".after:not([hidden])")
    page.click("[data-view=script]")
    expect(page.locator(".script")).to_have_class("script as-script")
    page.get_by_role("tab", name="Chat").click()
    page.fill("#line textarea", "Did you break the build?")
    page.press("#line textarea", "Enter")
    expect(page.locator("#talk .bot-row")).to_contain_text(":")


def test_lamp_view_and_chat_work_in_a_frame(framed: tuple[Page, Frame]) -> None:
    all_of_it_works(framed[1])


def test_the_page_works_where_nothing_may_be_remembered(visit: Visit, chromium: Browser) -> None:
    context = chromium.new_context(reduced_motion="reduce")
    context.add_init_script(NO_MEMORY)
    all_of_it_works(visit(context=context))
    context.close()


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
