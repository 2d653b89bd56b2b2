"""A visitor on the Chat tab."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.house import House

Picture = Callable[[Page, str], None]


def open_chat(page: Page) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.wait_for_selector("#table input[value=ROSS]", state="attached")


def say(page: Page, line: str) -> None:
    """Says a line and waits for the whole answer."""
    before = page.locator("#talk .bot-row").count()
    page.fill("#line textarea", line)
    page.press("#line textarea", "Enter")
    expect(page.locator("#talk .bot-row")).to_have_count(before + 1)
    whole = re.compile(r"[A-Z]+: .*[.!?\"')-]\s*$")
    expect(page.locator("#talk .bot-row .message").last).to_have_text(whole)
    page.wait_for_timeout(300)


def messages(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#talk .message-row .message").all_inner_texts()]


def test_a_conversation_streams_survives_a_reload_and_can_be_saved(visit: Visit, picture: Picture) -> None:
    page = visit()
    open_chat(page)
    page.check("#table input[name=me][value=MONICA]", force=True)
    page.check("#table input[name=them][value=CHANDLER]", force=True)
    say(page, "I broke the build again.")
    say(page, "What did you do?")
    talk = messages(page)
    assert talk[0] == "MONICA: I broke the build again."
    assert re.fullmatch(r"CHANDLER: .+", talk[1])
    assert talk[2] == "MONICA: What did you do?"
    assert len(talk) == 4
    face = page.locator("#talk .bot-row").first.evaluate("row => getComputedStyle(row, '::before').backgroundImage")
    assert "portraits/chandler.svg" in face
    picture(page, "chat")

    page.reload()
    page.wait_for_selector(".stage.ready")
    open_chat(page)
    expect(page.locator("#talk .message-row")).to_have_count(4)
    assert messages(page) == talk
    assert page.is_checked("#table input[name=me][value=MONICA]")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as a scene").click()
    assert Path(saved.value.path()).read_text(encoding="utf-8") == "SCENE: CENTRAL PERK\n\n" + "\n".join(talk) + "\n"


def test_retry_undo_edit_and_start_over(visit: Visit) -> None:
    page = visit()
    open_chat(page)
    say(page, "Who ate my sandwich?")
    first = messages(page)
    page.get_by_role("button", name=re.compile("retry", re.IGNORECASE)).click()
    expect(page.locator("#talk .bot-row .message")).not_to_have_text(first[1])
    page.get_by_role("button", name=re.compile("retry", re.IGNORECASE)).wait_for()
    assert messages(page)[0] == first[0]

    page.get_by_role("button", name=re.compile("^edit", re.IGNORECASE)).first.click()
    page.locator("#talk textarea").fill("ROSS: Who ate my bagel?")
    page.get_by_role("button", name=re.compile("submit", re.IGNORECASE)).click()
    expect(page.locator("#talk .user-row .message")).to_have_text("ROSS: Who ate my bagel?")
    expect(page.locator("#talk .bot-row")).to_have_count(1)
    page.get_by_role("button", name=re.compile("undo", re.IGNORECASE)).click()
    expect(page.locator("#talk .message-row")).to_have_count(0)
    expect(page.locator("#line textarea")).to_have_value("Who ate my bagel?")
    say(page, "Who ate my bagel?")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#talk .message-row")).to_have_count(0)


def test_stop_ends_an_answer_and_frees_its_place(visit: Visit, house: House) -> None:
    page = visit()
    open_chat(page)
    with house.slow(0.2):
        page.fill("#line textarea", "Tell me a long story.")
        page.click("#send")
        expect(page.locator("#talk .bot-row")).to_have_count(1)
        house.wait(lambda: house.taken == 1, 1)
        page.get_by_role("button", name="Stop", exact=True).click()
        house.wait(lambda: house.taken == 0, 0.3)


def test_what_is_typed_appears_as_text(visit: Visit) -> None:
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    open_chat(page)
    line = "<b>Hi</b> <img src=x onerror=alert(1)> &lt; [a](javascript:alert(2)) **no** $$x$$"
    say(page, line)
    assert messages(page)[0].replace("\u2060", "") == f"ROSS: {line}"
    assert page.locator("#talk :is(img[src=x], b, strong, .katex), #talk a").count() == 0


def test_a_line_has_its_limit_in_the_browser_and_on_the_server(visit: Visit) -> None:
    page = visit()
    open_chat(page)
    page.fill("#line textarea", "word " * 200)
    assert len(page.input_value("#line textarea")) == 140
    page.fill("#line textarea", "   ")
    page.click("#send")
    expect(page.locator("#trouble .notice")).to_have_text("Type a line first.")
