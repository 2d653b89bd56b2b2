"""Whether every scene parses and keeps its rules: `python -m tests.benchmarks.scenes`.

10,000 scenes at temperatures from 0.1 to 2.0, with random leads, casts and lengths. Says what broke, if anything did.
"""

import random
import sys
import time
from collections import Counter, deque
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

import cpgpt


def random_settings(chance: random.Random, writer: cpgpt.SceneWriter) -> dict[str, Any]:
    """What a visitor may choose, at random."""
    most = writer.facts["lengths"]["lines_of_a_scene"]["max"]
    cast = chance.sample(writer.characters, chance.randint(2, len(writer.characters))) if chance.random() < 0.7 else None
    least = chance.randint(len(cast) + 3 if cast else 4, most)
    settings: dict[str, Any] = {"cast": cast, "temperature": round(chance.uniform(0.1, 2.0), 2), "lines": (least, most)}
    if chance.random() < 0.8:
        settings["character"] = chance.choice(cast or writer.characters)
    if chance.random() < 0.5:
        settings["place"] = chance.choice(writer.places)
    return settings


def broken(scene: cpgpt.Scene, settings: dict[str, Any]) -> str | None:
    """Which promise a scene breaks; None if it keeps all."""
    counts = Counter(line.speaker for line in scene.lines)
    lead, cast, (least, most) = settings.get("character"), settings["cast"], settings["lines"]
    if cast and set(counts) != set(cast):
        return f"{sorted(counts)} speak, not {sorted(cast)}"
    if not least <= len(scene.lines) <= most:
        return f"{len(scene.lines)} lines, not {least} to {most}"
    if lead and scene.lines[0].speaker != lead:
        return f"{scene.lines[0].speaker} opens it, not {lead}"
    if lead and len(counts) > 2 and any(count >= counts[lead] for name, count in counts.items() if name != lead):
        return f"{lead} has not the most lines: {dict(counts)}"
    if settings.get("place", scene.place) != scene.place:
        return f"it is at {scene.place}, not {settings['place']}"
    return None


def main(
    scenes: Annotated[int, typer.Option(min=1, help="How many.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the settings and the scenes.")] = 1,
) -> None:
    """Write scenes with random settings and check each."""
    writer, chance = cpgpt.load(), random.Random(seed)
    started: deque[tuple[dict[str, Any], cpgpt.SceneStream]] = deque()
    faults, characters, began = list[str](), 0, time.perf_counter()
    for number in track(range(scenes + writer.engine.places), "scenes", console=Console(stderr=True), transient=True):
        if number < scenes:
            settings = random_settings(chance, writer)
            started.append((settings, writer.stream(seed=seed + number, **settings)))
        if number >= writer.engine.places:
            settings, stream = started.popleft()
            try:
                fault = broken(stream.scene, settings)  # parses it
            except cpgpt.ScreenplayError as error:
                fault = str(error)
            characters += len(stream.text)
            if fault:
                faults.append(f"seed {stream.seed}, {settings}: {fault}")
    rate = characters / (time.perf_counter() - began)
    print(f"{scenes:,} scenes, {characters:,} characters, {rate:,.0f} characters/s: {len(faults)} faults")
    print("\n".join(faults[:20]))
    sys.exit(bool(faults))


if __name__ == "__main__":
    typer.run(main)
