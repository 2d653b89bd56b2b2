"""The commands `cpgpt push` and `cpgpt push-space`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpgpt.terminal import errors

if TYPE_CHECKING:
    from cpgpt.publish import Push


def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME, or NAME in your own account.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint folder.", show_default="the embedded one")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it so that only you see it.")] = False,
    tag: Annotated[str | None, typer.Option(help="A name for this version, such as v1.")] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    space: Annotated[
        str | None, typer.Option(help="The Space that the card links to, USER/NAME.", show_default="of the same name")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes, and push nothing.")] = False,
) -> None:
    """Put a checkpoint on the Hugging Face Hub: weights, card, training log, and the model's code to be read.

    Log in first: `hf auth login`, or HF_TOKEN. Pushing the same thing twice makes no new commit.
    """
    from cpgpt import EMBEDDED, publish

    folder = EMBEDDED if checkpoint is None else checkpoint
    with errors():
        if dry_run:
            _list(publish.sizes(publish.checkpoint_files(folder, repo, space)))
            print(f"nothing was pushed to {repo}")
            return
        done = publish.push_checkpoint(folder, repo, private=private, commit_message=message, tag=tag, space=space)
    _report(done)
    print(f"use it: python -c 'import cpgpt; print(cpgpt.from_hub(\"{done.repo_id}\").scene())'")


def push_space(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The Space: USER/NAME, or NAME in your own account.")],
    model: Annotated[str, typer.Option(help="The model that it serves: USER/MODEL, or USER/MODEL@REVISION.")],
    hardware: Annotated[
        str | None, typer.Option(help="What it runs on, such as cpu-upgrade or t4-small.", show_default="cpu-basic, free")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it so that only you see it.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes, and push nothing.")] = False,
) -> None:
    """Create or update the Space: a web page that types scenes, with a model of the Hub.

    Log in first: `hf auth login`, or HF_TOKEN. Pushing the same thing twice makes no new commit.
    """
    from cpgpt import publish

    with errors():
        if dry_run:
            _list(publish.sizes(publish.space_files(model)))
            print(f"nothing was pushed to {repo}")
            return
        done = publish.push_space(repo, model, hardware=hardware, private=private, commit_message=message)
    _report(done)


def _list(sizes: dict[str, int]) -> None:
    width = max(map(len, sizes))
    for path, size in sorted(sizes.items()):
        print(f"{path:{width}}  {size:>12,}")
    print(f"{f'{len(sizes)} files':{width}}  {sum(sizes.values()):>12,} bytes")


def _report(done: "Push") -> None:
    state = f"commit {done.commit[:8]}" if done.changed else f"nothing has changed since commit {done.commit[:8]}"
    print(f"{done.url}: {state}, {len(done.files)} files, {sum(done.files.values()):,} bytes")
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
