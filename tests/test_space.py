"""The Space's API and its server: what clients get, what they are refused, and what becomes of those who leave."""

import concurrent.futures
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

import cpgpt
from tests.commands import ENVIRONMENT, ROOT
from tests.house import House, free_port
from tests.house import house as open_house


@pytest.fixture(scope="module")
def house() -> House:
    return open_house()


@pytest.fixture(scope="module")
def client(house: House) -> Client:
    return Client(house.url, verbose=False)


def post(house: House, path: str, body: Any) -> Any:
    request = urllib.request.Request(house.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def start(house: House, endpoint: str, **arguments: Any) -> str:
    """Starts an event as curl does; returns where it is to be followed."""
    event = post(house, f"/gradio_api/call/v2/{endpoint}", arguments)["event_id"]
    return f"{house.url}/gradio_api/call/v2/{endpoint}/{event}"


def events(url: str) -> Iterator[tuple[str, Any]]:
    """Server-sent events: (name, data) each."""
    with urllib.request.urlopen(url, timeout=30) as stream:
        name = ""
        for line in stream:
            key, _, value = line.decode().rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


def failure(house: House, endpoint: str, **arguments: Any) -> str:
    """What the caller is told."""
    name, data = list(events(start(house, endpoint, **arguments)))[-1]
    assert name == "error", data
    return str(data["error"])


def test_a_scene_streams_and_ends_as_a_dictionary(house: House, client: Client) -> None:
    settings: dict[str, Any] = {"character": "RACHEL", "title": "THE ONE WITH THE SLOW QUERY", "temperature": 0.7, "seed": 5}
    with house.slow(0.01):
        parts = list(client.submit(**settings, lines=[8, 9], cast=["JOEY"], api_name="/scene"))
    texts, scene = [part for part in parts if isinstance(part, str)], parts[-1]
    assert len(texts) >= 5
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert scene["text"].startswith(texts[-1])
    same = house.writer.scene(**settings, lines=(8, 9), cast=["JOEY"])
    assert scene["text"] == str(same)
    assert scene["title"] == "THE ONE WITH THE SLOW QUERY"
    assert scene["place"] == same.place
    assert scene["lines"] == [{"speaker": line.speaker, "text": line.text} for line in same.lines]
    assert scene["seed"] == 5
    assert scene["settings"] == {
        **settings,
        "lines": [8, 9],
        "cast": ["JOEY"],
        "place": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
    }
    assert scene["checkpoint"] == {"name": "centralperk", "revision": None}


def test_a_seed_that_was_drawn_gives_the_scene_again(client: Client) -> None:
    scene = client.predict(api_name="/scene")
    assert client.predict(seed=scene["seed"], api_name="/scene")["text"] == scene["text"]


def test_a_reply(house: House, client: Client) -> None:
    history = [{"speaker": "ROSS", "text": "It passed on my machine."}, {"direction": "The lights go out."}]
    *texts, line = list(client.submit(history, character="MONICA", seed=3, api_name="/reply"))
    assert line["speaker"] == "MONICA"
    assert texts[-1].strip() == f"MONICA: {line['text']}"
    items = [cpgpt.Line("ROSS", "It passed on my machine."), cpgpt.Direction("The lights go out.")]
    assert house.writer.reply(items, "MONICA", seed=3) == cpgpt.Line("MONICA", line["text"])
    assert (
        client.predict(history, api_name="/reply")["speaker"] != "ROSS"
    )  # whoever the model picks, but not whoever has just spoken


def test_characters(house: House, client: Client) -> None:
    told = client.predict(api_name="/characters")
    assert told["characters"] == list(house.writer.characters)
    assert told["places"] == list(house.writer.places)


def test_the_api_page_knows_types_ranges_and_meanings(house: House) -> None:
    with urllib.request.urlopen(house.url + "/gradio_api/info") as response:
        endpoints = json.load(response)["named_endpoints"]
    assert set(endpoints) == {"/scene", "/reply", "/characters"}
    for endpoint in ("/scene", "/reply"):
        for parameter in endpoints[endpoint]["parameters"]:
            assert parameter["python_type"]["description"], parameter
            assert parameter["type"].get("type") or parameter["type"].get("anyOf")
            assert parameter["parameter_has_default"] or parameter["parameter_name"] == "history"
    known = {parameter["parameter_name"]: parameter["type"] for parameter in endpoints["/scene"]["parameters"]}
    assert known["character"]["enum"] == list(house.writer.characters)
    assert known["temperature"]["minimum"] == 0
    assert known["top_p"]["maximum"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"character": "URSULA"},
        {"temperature": -1},
        {"top_p": 7},
        {"top_k": 0},
        {"min_p": -0.5},
        {"seed": -3},
        {"place": "THE MOON"},
        {"lines": 90},
        {"lines": [5, 3]},
        {"cast": ["JOEY", "JANICE"]},
        {"title": "the one with " + "very " * 20},
    ],
    ids=str,
)
def test_what_python_refuses_is_refused_in_the_same_words(house: House, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is what is compared)
        house.writer.scene(
            **{name: tuple(value) if name == "lines" and isinstance(value, list) else value for name, value in arguments.items()}
        )
    assert failure(house, "scene", **arguments) == str(refusal.value)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("scene", {"temperature": "hot"}, "temperature must be a number"),
        ("scene", {"temperature": True}, "temperature must be a number"),
        ("scene", {"seed": 1.5}, "seed must be a whole number"),
        ("scene", {"seed": {"$ne": 1}}, "seed must be a whole number"),
        ("scene", {"character": ["ROSS"]}, "character must be text"),
        ("scene", {"cast": "ROSS"}, "cast must be a list of names"),
        ("scene", {"lines": [1, 2, 3]}, "lines must be a whole number, or two: the fewest and the most"),
        ("scene", {"title": "x" * 100_000}, "title has 100000 characters: 500 is the most"),
        ("reply", {"history": "hello"}, "history must be a list of at most 200 lines"),
        ("reply", {"history": [{"speaker": "ROSS", "text": "a"}] * 201}, "history must be a list of at most 200 lines"),
        ("reply", {"history": [{"speaker": "A"}]}, "line 1 of history must be a dictionary with speaker and text, or with"),
    ],
)  # fmt: skip
def test_what_is_no_argument_at_all_is_named(house: House, endpoint: str, arguments: dict[str, Any], message: str) -> None:
    assert failure(house, endpoint, **arguments).startswith(message)


# Those who leave


@contextmanager
def followed(url: str) -> Iterator[Any]:
    """A connection that has got a first event."""
    with urllib.request.urlopen(url, timeout=30) as stream:
        stream.readline()
        yield stream


def test_dropping_the_connection_frees_the_place(house: House) -> None:
    with house.slow():
        with followed(start(house, "scene")):
            house.wait(lambda: house.taken == 1, 1)
        house.wait(lambda: house.taken == 0, 0.3)


def test_dropping_the_connection_frees_the_place_in_the_queue(house: House) -> None:
    with house.slow(), house.room(places=0, max_waiting=5):
        with followed(start(house, "scene")):
            house.wait(lambda: house.writer.engine.waiting == 1, 1)
        house.wait(lambda: house.writer.engine.waiting == 0, 0.3)


def test_cancelling_a_job_frees_the_place(house: House, client: Client) -> None:
    with house.slow():
        job = client.submit(api_name="/scene")
        next(iter(job))
        house.wait(lambda: house.taken == 1, 1)
        job.cancel()
        house.wait(lambda: house.taken == 0, 0.3)


def test_a_full_house_is_a_friendly_error(house: House) -> None:
    with house.slow(), house.room(places=0, max_waiting=0):
        assert "full" in failure(house, "scene")
    assert list(events(start(house, "scene")))[-1][0] == "complete"  # and soon it is not


def test_many_at_once_are_all_served(house: House) -> None:
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(lambda seed: list(events(start(house, "scene", seed=seed)))[-1], range(24)))
    assert [name for name, _ in ends] == ["complete"] * 24
    assert [data[0]["seed"] for _, data in ends] == list(range(24))
    house.wait(lambda: house.taken == 0, 1)


# What nobody may have


@pytest.mark.parametrize("path", ["pyproject.toml", "space/app.py", "cpgpt/__init__.py", "README.md"])
def test_no_file_of_the_server_is_readable(house: House, path: str) -> None:
    absolute = str(ROOT / path)
    quoted = urllib.parse.quote(absolute)
    outside = [f"/house/../../../{path}", f"/house/%2e%2e/%2e%2e/%2e%2e/{path}", f"/house/portraits/..%2f..%2f..%2f..%2f{path}.svg"]
    gradios = [f"/gradio_api/file={absolute}", f"/gradio_api/file={quoted}", f"/gradio_api/file/{absolute}", f"/file={absolute}"]
    for route in (*gradios, *outside, f"/static/../../{path}", f"/assets/{quoted}"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(house.url + route, timeout=10)
        assert error.value.code in (403, 404, 405), route


def test_portraits_are_of_the_cast_only(house: House) -> None:
    with urllib.request.urlopen(house.url + "/house/portraits/ross.svg") as response:
        assert response.headers["Content-Type"] == "image/svg+xml"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(house.url + "/house/portraits/ursula.svg")


def test_a_cast_without_portraits_gets_monograms() -> None:
    from house import portraits

    assert ">AB<" in portraits.portrait("ADA B")
    assert portraits.inks("ADA B") == portraits.inks("ADA B")
    assert "<script" not in portraits.portrait("<SCRIPT>")


# A server of its own: the command, its start, what it says


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, float]]:
    """`cpgpt serve`: its address, the file with all it has printed, and the seconds until it was open."""
    said = tmp_path_factory.mktemp("served") / "said.txt"
    port = free_port()
    began = time.monotonic()
    with open(said, "w") as file:
        command = [sys.executable, "-m", "cpgpt", "serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=said.parent, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while "is open at" not in said.read_text():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() - began < 60, said.read_text()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}", said, time.monotonic() - began
        finally:
            process.terminate()
            process.wait(10)


def test_the_address_is_printed_when_it_answers(served: tuple[str, Path, float]) -> None:
    url, said, _ = served
    with urllib.request.urlopen(url, timeout=5) as response:
        assert b"centralperkGPT" in response.read()
    assert f"centralperkGPT is open at {url}" in said.read_text()


def test_the_command_leaves_it_to_the_page_to_import_gradio(tmp_path: Path) -> None:
    """The page does it in a third less time (see house/__init__.py), but only where nobody did it before."""
    (tmp_path / "app.py").write_text("import sys\ndef main(**options): print('gradio' in sys.modules, options)\n")
    code = "import sys, pathlib; from cpgpt import cli_serve as c; c.PLACES = (pathlib.Path(sys.argv[1]),); c.serve(port=1234)"
    said = run([sys.executable, "-c", code, str(tmp_path)])
    assert said == "False {'server_name': '127.0.0.1', 'server_port': 1234}\n"


def test_nothing_that_a_visitor_types_is_logged_or_kept(served: tuple[str, Path, float]) -> None:
    url, said, _ = served
    here = House(url, None, None)
    word = "zanzibar"
    list(events(start(here, "scene", title=f"the {word}")))
    list(events(start(here, "reply", history=[{"speaker": "ROSS", "text": f"I want {word}."}])))
    failure(here, "scene", character=word)
    failure(here, "reply", history=[{"speaker": word, "text": word}])
    failure(here, "scene", seed=word)
    assert word not in said.read_text().lower()
    kept = [file for file in Path("/tmp/gradio").rglob("*") if file.is_file() and word.encode() in file.read_bytes().lower()]
    assert not kept


def run(code: list[str], given: str | None = None, cwd: Path | None = None) -> str:
    result = subprocess.run(code, input=given, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def snippets(house: House) -> dict[str, str]:
    """The snippets of the Code tab, as a visitor of this very house reads them."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    found: dict[str, str] = {}

    def read() -> None:  # in a thread of its own: the browser tests have Playwright running in this one
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(house.url)
            page.wait_for_selector(".stage.ready")
            page.check("input[name=lead][value=JOEY]", force=True)
            page.click(".more summary")
            page.fill("#seed", "7")
            page.fill("#title", "joey's (lunch)")
            page.get_by_role("tab", name="Use it from code").click()
            for name in ("Python", "JavaScript", "curl", "MCP"):
                found[name] = page.locator(f"#snippet-{name} code").inner_text()
            browser.close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(60)
    assert found
    return found


def the_scene(house: House) -> str:
    return str(house.writer.scene("JOEY", title="THE ONE WITH JOEY'S (LUNCH)", temperature=0.8, seed=7))


def test_the_python_snippet_runs(house: House, snippets: dict[str, str]) -> None:
    printed = run([sys.executable, "-c", snippets["Python"]])
    assert the_scene(house) in printed


def test_the_curl_snippet_runs(house: House, snippets: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    printed = run(["bash", "-c", snippets["curl"]])
    assert "event: generating" in printed
    last = re.findall(r"^data: (.*)$", printed, re.MULTILINE)[-1]
    assert json.loads(last)[0]["text"] == the_scene(house)


def test_the_javascript_snippet_runs(house: House, snippets: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node")
    installed = subprocess.run(["npm", "install", "--silent", "@gradio/client"], cwd=tmp_path, capture_output=True, timeout=120)
    if installed.returncode != 0:
        pytest.skip("npm cannot install @gradio/client")
    (tmp_path / "snippet.mjs").write_text(snippets["JavaScript"] + "\nconsole.log('END');\nprocess.exit(0);\n")
    printed = run(["node", "snippet.mjs"], cwd=tmp_path)
    assert "JOEY: " in printed
    assert "seed: 7" in printed


def test_the_tools_are_there_for_mcp(house: House, snippets: dict[str, str]) -> None:
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    url = json.loads(snippets["MCP"])["mcpServers"]["centralperkgpt"]["url"]

    async def ask() -> tuple[dict[str, Any], str]:
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            answer = await session.call_tool("scene", {"character": "JOEY", "title": "THE ONE WITH JOEY'S (LUNCH)", "seed": 7})
            return tools, answer.content[0].text  # type: ignore[union-attr]

    result: list[tuple[dict[str, Any], str]] = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(ask())))
    thread.start()
    thread.join(60)
    tools, answer = result[0]
    assert set(tools) == {"scene", "reply", "characters"}
    assert tools["scene"].inputSchema["properties"]["character"]["enum"] == list(house.writer.characters)
    assert "likeliest" in tools["scene"].inputSchema["properties"]["temperature"]["description"]
    assert the_scene(house).splitlines()[-1].split('"')[0] in answer
