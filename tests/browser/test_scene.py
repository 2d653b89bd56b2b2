"""A visitor on the Scene tab."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import cpgpt
from tests.browser.conftest import Visit
from tests.house import House

Picture = Callable[[Page, str], None]
WHOLE = 40_000  # milliseconds for a scene to be typed

# Counts in the page itself how the text grows: (milliseconds, characters) whenever it has changed.
RECORD = """() => {
    const lines = document.querySelector(".stage .lines");
    window.grown = [];
    new MutationObserver(() => window.grown.push([performance.now(), lines.innerText.length]))
        .observe(lines, { childList: true, subtree: true, characterData: true });
}"""


def text_of(page: Page) -> str:
    """The scene as the page shows it, as text."""
    return str(
        page.evaluate("""() => {
        const one = (selector) => document.querySelector(selector);
        const title = one("h2.title").hidden ? "" : one("h2.title").textContent + "\\n\\n";
        const rows = [...document.querySelectorAll(".lines > *")].map((box) => box.dataset.speaker
            ? `${box.dataset.speaker}: ${box.querySelector(".words").textContent}` : `(${box.textContent})`);
        return `${title}SCENE: ${one("p.place").textContent}\\n\\n${rows.join("\\n")}\\n`;
    }""")
    )


def write(page: Page, whole: bool = True) -> None:
    page.click(".write")
    page.wait_for_selector(".script:not([hidden])")
    if whole:
        page.wait_for_selector(".after:not([hidden])", timeout=WHOLE)


def test_one_click_gives_a_scene_that_grows_under_its_speakers_portraits(visit: Visit, picture: Picture) -> None:
    page = visit()
    page.check("input[name=lead][value=JOEY]", force=True)
    page.evaluate(RECORD)
    write(page, whole=False)
    page.wait_for_selector(".line >> nth=1")
    first = page.locator(".line").first
    assert first.get_attribute("data-speaker") == "JOEY"
    assert (first.locator("img").get_attribute("src") or "").endswith("portraits/joey.svg")
    assert first.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator(".typing").count() == 1
    picture(page, "scene-being-typed")
    page.wait_for_selector(".after:not([hidden])", timeout=WHOLE)
    picture(page, "scene")
    scene = cpgpt.parse(text_of(page))  # it is one
    assert scene.lines[0].speaker == "JOEY"
    grown = page.evaluate("window.grown")
    lengths = {length for _, length in grown}
    assert len(lengths) >= 100
    steps = [after - before for (_, before), (_, after) in itertools.pairwise(grown) if after > before]
    assert sum(step > 12 for step in steps) <= len(scene.items)  # a new line brings its speaker's name at once; the rest is typed
    assert page.locator(".typing").count() == 0


def test_the_typing_is_even_although_the_text_comes_in_portions(visit: Visit, house: House) -> None:
    page = visit()
    page.evaluate(RECORD)
    with house.slow(0.02):
        write(page, whole=False)
        page.wait_for_timeout(2500)
        grown = page.evaluate("window.grown")
        page.click(".stop")
    moments = [at for at, _ in grown if at > grown[0][0] + 500]
    gaps = sorted(after - before for before, after in itertools.pairwise(moments))
    assert len(moments) > 30
    assert gaps[int(0.95 * len(gaps))] < 250  # milliseconds


def test_stop_keeps_what_was_typed_and_frees_the_place(visit: Visit, house: House) -> None:
    page = visit()
    with house.slow():
        write(page, whole=False)
        page.wait_for_selector(".line >> nth=0")
        page.wait_for_timeout(400)
        house.wait(lambda: house.taken == 1, 1)
        page.click(".stop")
        house.wait(lambda: house.taken == 0, 0.3)
        page.wait_for_selector(".after:not([hidden])")
        shown = text_of(page)
        page.wait_for_timeout(500)
        assert text_of(page) == shown
    assert len(shown) > 20
    expect(page.locator(".write")).to_have_text("Write another")


def test_closing_the_page_frees_the_place(visit: Visit, house: House) -> None:
    page = visit()
    with house.slow():
        write(page, whole=False)
        house.wait(lambda: house.taken == 1, 1)
        page.close()
        house.wait(lambda: house.taken == 0, 0.3)


def test_write_another_is_another(visit: Visit) -> None:
    page = visit()
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.wait_for_selector(".stage.ready")
    write(page)
    first, seed = text_of(page), page.inner_text("[data-do=seed]")
    page.click(".write")
    expect(page.locator(".write")).to_be_hidden()
    page.wait_for_selector(".after:not([hidden])", timeout=WHOLE)
    assert text_of(page) != first
    assert page.inner_text("[data-do=seed]") != seed


def test_the_link_gives_the_same_scene_to_whoever_opens_it(visit: Visit, house: House) -> None:
    still = {"reduced_motion": "reduce", "permissions": ["clipboard-read", "clipboard-write"]}
    page = visit(**still)
    page.click(".more summary")
    page.check("input[name=lead][value=PHOEBE]", force=True)
    page.check("input[name=company][value=ROSS]", force=True)
    page.fill("#title", "the silent pager")
    page.select_option("#place", "THE OFFICE")
    page.select_option("#length", index=1)
    page.fill("#heat", "1.1")
    write(page)
    text = text_of(page)
    scene = cpgpt.parse(text)
    assert scene.title == "THE ONE WITH THE SILENT PAGER"
    assert scene.place == "THE OFFICE"
    assert set(scene.speakers) == {"PHOEBE", "ROSS"}
    page.click("[data-do=link]")
    expect(page.locator(".said")).to_contain_text("copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(house.url + "/#")

    other = visit(link.removeprefix(house.url + "/"), reduced_motion="reduce")
    other.wait_for_selector(".after:not([hidden])", timeout=WHOLE)
    assert text_of(other) == text
    assert other.is_checked("input[name=lead][value=PHOEBE]")
    settings = {"character": "PHOEBE", "cast": ["ROSS"], "title": "the silent pager", "place": "THE OFFICE", "temperature": 1.1}
    seed = int(page.inner_text("[data-do=seed]").split()[1])
    lines = tuple(int(n) for n in page.input_value("#length").split("-"))
    assert str(house.writer.scene(**settings, lines=lines, seed=seed)) == text  # and to whoever asks in Python


def test_a_scene_can_be_taken_away(visit: Visit, tmp_path: Path) -> None:
    page = visit(reduced_motion="reduce", permissions=["clipboard-read", "clipboard-write"])
    write(page)
    text = text_of(page)
    page.click("[data-do=copy]")
    expect(page.locator(".said")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == text
    with page.expect_download() as saved:
        page.click("[data-do=text]")
    assert Path(saved.value.path()).read_text(encoding="utf-8") == text
    assert re.fullmatch(r"[a-z0-9-]+\.txt", saved.value.suggested_filename)
    with page.expect_download() as saved:
        page.click("[data-do=picture]")
    picture = Path(saved.value.path()).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 1080  # its width


@pytest.mark.parametrize("field", ["title", "character", "place", "cast"])
def test_html_in_a_link_appears_as_text(visit: Visit, field: str) -> None:
    """A link is what a stranger may have written."""
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>[a](javascript:alert(3))"
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto("about:blank")
    link = page.evaluate("([name, value]) => new URLSearchParams({ seed: 1, [name]: value }).toString()", [field, attack])
    page = visit("#" + link, context=page.context)
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.wait_for_selector(".refusal:not([hidden]), .line")
    page.wait_for_timeout(300)
    assert page.locator(".stage img[src=x], .stage script, .order img[src=x], a[href^=javascript]").count() == 0


def test_what_is_impossible_is_refused_on_the_page(visit: Visit) -> None:
    page = visit("#seed=1&character=URSULA")
    expect(page.locator(".refusal")).to_contain_text("URSULA")
    expect(page.locator(".refusal")).to_contain_text("PHOEBE")
    expect(page.locator(".write")).to_be_visible()


def test_a_full_house_says_so_and_a_queue_shows_the_place(visit: Visit, house: House) -> None:
    page, late = visit(), visit()
    with house.slow(), house.room(places=0, max_waiting=1):
        page.click(".write")
        expect(page.locator(".queue")).to_contain_text("number 1 in the queue")
        late.click(".write")
        expect(late.locator(".refusal")).to_contain_text("full")
        page.click(".stop")
        house.wait(lambda: house.writer.engine.waiting == 0, 0.3)
