"""A picture for everybody: those of static/portraits, and a drawn monogram for whoever has none there.

The cast is the checkpoint's. This file knows no name.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.sax.saxutils import escape

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static" / "portraits"
# For names, by day and by night: each has a contrast of 4.5 or more on the page's paper.
INKS = {
    "ross": ("#3f6b45", "#9ccc9f"),
    "monica": ("#a8323a", "#f09a94"),
    "rachel": ("#8a5a12", "#ecc070"),
    "chandler": ("#34569a", "#9dbcf2"),
    "joey": ("#8a4b25", "#e6ab7e"),
    "phoebe": ("#7448a0", "#ceaef0"),
    "gunther": ("#1f6f6b", "#83d2cb"),
}
OTHER_INKS = (
    ("#9c3d62", "#f0a3c2"),
    ("#4d6420", "#bcd587"),
    ("#2f6690", "#93c9ee"),
    ("#7a5230", "#dcb48d"),
    ("#5b4fa8", "#bdb4f6"),
)


def inks(name: str) -> tuple[str, str]:
    """The colour of a name, by day and by night; always the same for the same name."""
    return INKS.get(name.lower()) or OTHER_INKS[hashlib.sha256(name.encode()).digest()[0] % len(OTHER_INKS)]


def monogram(name: str) -> str:
    """SVG: the first letters of a name on a saucer."""
    initials = "".join(word[0] for word in name.split()[:2])
    ink = inks(name)[0]
    size = 30 if len(initials) == 1 else 24
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
        f'<g fill="{ink}" opacity=".22"><rect width="100" height="100"/><circle cx="50" cy="50" r="39"/></g>'
        f'<circle cx="50" cy="50" r="30" fill="#fffaf2" stroke="{ink}" stroke-width="2.5"/>'
        f'<text x="50" y="52" fill="{ink}" font-family="Georgia, serif" font-weight="700" font-size="{size}"'
        f' text-anchor="middle" dominant-baseline="central">{escape(initials)}</text></svg>'
    )


def portrait(name: str) -> str:
    """SVG of `name`."""
    file = FOLDER / f"{name.lower()}.svg"
    return file.read_text(encoding="utf-8") if file.parent == FOLDER and file.is_file() else monogram(name)


def route(characters: tuple[str, ...]) -> Callable[[Request], Awaitable[Response]]:
    """The handler of portraits/{name}.svg, for the names of the cast and no other."""
    pictures = {name.lower(): portrait(name) for name in characters}

    async def picture(request: Request) -> Response:
        svg = pictures.get(request.path_params["name"])
        if svg is None:
            raise HTTPException(404)
        return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": "max-age=3600"})

    return picture
