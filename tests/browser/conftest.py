"""A real browser, Debian's Chromium, in front of the real Space. Every page is watched: an error in it fails its test."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request, Response, sync_playwright

from tests.house import House
from tests.house import house as open_house

SCREENSHOTS = Path(__file__).parent / "screenshots"
Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def house() -> House:
    return open_house()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium: `make test` installs Debian's, or set CHROMIUM to its path"
    SCREENSHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """What went wrong on a page: errors of scripts and on the console, failed requests, requests to other hosts."""

    def __init__(self, url: str) -> None:
        self.url, self.faults = url, list[str]()
        self.own: tuple[str, ...] = ()  # other addresses that are no foreign ones

    def page(self, page: Page) -> None:
        page.on("pageerror", self.raised)
        page.on("console", self.said)
        page.on("response", self.answered)
        page.on("requestfailed", self.failed)
        page.on("request", self.started)

    def raised(self, error: Error) -> None:
        self.faults.append(f"error: {error}")

    def said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def failed(self, request: Request) -> None:
        # Gradio's client closes its stream of events when the last event has ended, or with the page.
        if "/queue/data?" not in request.url and "/heartbeat/" not in request.url:
            self.faults.append(f"failed: {request.url} {request.failure}")

    def started(self, request: Request) -> None:
        if not request.url.startswith((self.url, *self.own, "data:", "blob:")):
            self.faults.append(f"another host: {request.url}")


@pytest.fixture
def visit(house: House, chromium: Browser) -> Iterator[Visit]:
    """Opens the page as a new visitor, whose browser knows nothing of the others; keywords are Playwright's for a context."""
    contexts: list[BrowserContext] = []
    watch = Watch(house.url)

    def open_page(link: str = "", context: BrowserContext | None = None, **options: object) -> Page:
        if context is None:
            options.setdefault("viewport", {"width": 1280, "height": 900})
            context = chromium.new_context(accept_downloads=True, **options)  # type: ignore[arg-type]
            context.set_default_timeout(20_000)
            contexts.append(context)
        page = context.new_page()
        watch.page(page)
        page.goto(house.url + "/" + link)
        page.wait_for_selector(".stage.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not watch.faults, watch.faults


@pytest.fixture
def picture() -> Callable[[Page, str], None]:
    """Keeps a screenshot for people to look at."""

    def take(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take
