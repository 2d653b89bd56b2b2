"""How the page looks and who can use it: sizes, light and dark, the keyboard, a screen reader."""

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.house import House

Picture = Callable[[Page, str], None]
TABS = ["Scene", "Chat", "Use it from code", "About"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def no_sideways_scroll(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


def no_serious_violation(page: Page, where: str) -> None:
    found = Axe().run(page).response["violations"]
    serious = [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]
    assert not serious, f"{where}: {serious}"


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_phone_has_no_sideways_scroll(visit: Visit, picture: Picture, width: int) -> None:
    page = visit(**{**PHONE, "viewport": {"width": width, "height": 844}}, reduced_motion="reduce")
    no_sideways_scroll(page)
    page.click(".write")
    page.wait_for_selector(".after:not([hidden])", timeout=40_000)
    no_sideways_scroll(page)
    if width == 390:
        picture(page, "phone")
        page.click(".more summary")
        for tab in TABS:
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(200)
            no_sideways_scroll(page)
    for button in page.locator(".tools button:visible").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= 38  # large enough for a finger


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(visit: Visit, picture: Picture, scheme: str) -> None:
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    page.click(".more summary")
    no_serious_violation(page, "the form")
    page.click(".write")
    page.wait_for_selector(".after:not([hidden])", timeout=40_000)
    picture(page, f"{scheme}-scene")
    no_serious_violation(page, "a scene")
    for tab in TABS[1:]:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        if tab == "Chat":
            page.fill("#line textarea", "Hello.")
            page.press("#line textarea", "Enter")
            page.wait_for_selector("#talk .bot-row")
            page.wait_for_timeout(600)
        picture(page, f"{scheme}-{tab.split()[0].lower()}")
        no_serious_violation(page, tab)


def test_the_lamp_is_remembered(visit: Visit) -> None:
    page = visit(color_scheme="light")
    page.click(".lamp")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.reload()
    page.wait_for_selector(".stage.ready")
    assert page.evaluate("document.body.classList.contains('dark')")


def test_the_keyboard_is_enough(visit: Visit, picture: Picture) -> None:
    page = visit()
    page.focus(".lamp")

    def tab_to(selector: str) -> None:
        for _ in range(25):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("input[name=lead]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[name=lead][value=MONICA]")
    picture(page, "keyboard")
    tab_to("#heat")
    page.keyboard.press("End")
    assert page.input_value("#heat") == "1.5"
    expect(page.locator("#order output")).to_have_text("unhinged · 1.50")
    page.keyboard.press("Home")
    tab_to(".write")
    page.keyboard.press("Enter")
    page.wait_for_selector(".line")
    assert page.locator(".line").first.get_attribute("data-speaker") == "MONICA"
    assert page.evaluate("document.activeElement.matches('.stop')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".after:not([hidden])")
    assert page.evaluate("document.activeElement.matches('.write')")


def test_a_screen_reader_hears_finished_lines_and_not_every_character(visit: Visit) -> None:
    page = visit()
    page.evaluate("""() => {
        window.heard = [];
        const hear = (change) => change.addedNodes.forEach((node) => window.heard.push(node.textContent));
        new MutationObserver((changes) => changes.forEach(hear))
            .observe(document.querySelector("[aria-live=polite]"), { childList: true, characterData: true, subtree: true });
    }""")
    page.click(".write")
    page.wait_for_selector(".after:not([hidden])", timeout=40_000)
    heard = page.evaluate("window.heard")
    lines = page.evaluate("""[...document.querySelectorAll(".line")].map(
        (line) => `${line.querySelector(".name").textContent}: ${line.querySelector(".words").textContent}`)""")
    assert [line for line in heard if line in lines] == lines
    assert (
        len(heard)
        == len(set(heard))
        == page.locator(".lines > *").count() + page.locator("h2.title:visible, p.place:visible").count()
    )


def test_reduced_motion_types_nothing(visit: Visit, house: House) -> None:
    page = visit(reduced_motion="reduce")
    page.click(".write")
    page.wait_for_selector(".after:not([hidden])", timeout=20_000)
    assert page.evaluate("document.getAnimations().filter((each) => each.playState === 'running').length") == 0


@pytest.mark.parametrize("name", ["Python", "curl"])
def test_the_snippets_have_the_settings_of_the_form(visit: Visit, name: str) -> None:
    page = visit()
    page.check("input[name=lead][value=GUNTHER]", force=True)
    page.get_by_role("tab", name="Use it from code").click()
    expect(page.locator(f"#snippet-{name} code")).to_contain_text("GUNTHER")


def test_the_portraits_are_all_there() -> None:
    from tests.house import house

    files = Path(__file__).parents[2] / "space" / "house" / "static" / "portraits"
    assert {name.lower() for name in house().writer.characters} <= {file.stem for file in files.glob("*.svg")}
