"""A stand-in for the Hugging Face Hub: its HTTP protocol on loopback, its contents in memory, its faults on demand.

The real `huggingface_hub` client talks to it (`HF_ENDPOINT`), so what the tests promise is what a user's client does. It speaks
what that client sends for our calls: repositories, tokens, card validation, preupload, LFS (basic and multipart), commits,
revisions, tags, branches, trees, `resolve` with its redirects. It knows nothing about this project.

    with HubServer(tokens={"hf_writer": Account("you")}) as hub:
        hub.endpoint, hub.repository("you/model").files()

`python -m tests.hub_server COMMAND ...` runs a command against a fresh one, logged in as `you`.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from tests.hub_faults import Fault, Faults, Seen
from tests.hub_store import LFS_SUFFIXES, Account, Blob, Commit, Repository, card_problems

REGULAR_LIMIT = 10 * 2**20
PART = 5 * 2**20  # uploads larger than this go in parts
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class HubError(Exception):
    """An answer that is an error, with the headers by which the client tells errors apart."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        self.response = JSONResponse({"error": message}, status, {"X-Error-Message": message})
        if code:
            self.response.headers["X-Error-Code"] = code


def listener() -> socket.socket:
    """A socket on any free port. That it is TCP is said, or asyncio would wait 40 ms with every second packet (Nagle)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    return sock


class HubServer:
    """The stand-in, served by a thread of its own while the `with` block lasts.

    Args:
        tokens: who may log in, by token.
        sock: a bound socket to listen on, where the address must be known before; by default any free port.
    """

    def __init__(self, tokens: dict[str, Account] | None = None, sock: socket.socket | None = None) -> None:
        self.socket = sock or listener()
        self.port: int = self.socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}"  # another origin, as the Hub's storage is: no token may go there
        self.tokens = tokens or {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files, by sha256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Seen] = []
        self.server = uvicorn.Server(uvicorn.Config(self._app(), log_config=None, lifespan="off", http="h11", ws="none"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join()

    def repository(self, id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, id]

    def fault(self, kind: str, where: str, **details: Any) -> Fault:
        self.faults.append(Fault(kind, where, **details))
        return self.faults[-1]

    def seen(self, where: str) -> list[Seen]:
        """The requests so far whose "METHOD /path" matches."""
        return [request for request in self.requests if re.search(where, request.line)]

    def forget(self) -> None:
        """Everything that clients put here and did, and the faults: as if just started."""
        for memory in (self.repositories, self.objects, self.parts, self.faults, self.requests):
            memory.clear()

    # Who asks, and for what

    def _account(self, request: Request) -> Account | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        account = self.tokens.get(header.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return account

    def _repository(self, request: Request, write: bool = False) -> Repository:
        account, id = self._account(request), f"{request.path_params['owner']}/{request.path_params['name']}"
        kind = KINDS[request.path_params.get("kind", "models")]
        repository = self.repositories.get((kind, id))
        owner = account is not None and account.name == id.split("/")[0]
        if repository is None or (repository.private and not owner):
            # The Hub doesn't tell a stranger whether a private repository exists.
            raise HubError(401 if account is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self._may_write(account, id)
        return repository

    def _may_write(self, account: Account | None, id: str) -> Account:
        if account is None:
            raise HubError(401, None, "Invalid username or password.")
        if account.name != id.split("/")[0] or not account.write:
            raise HubError(403, None, f"You don't have the rights to write to {id}")
        return account

    def _commit(self, request: Request, repository: Repository) -> Commit:
        revision = unquote(request.path_params.get("revision", "main"))
        commit = repository.find(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Accounts, repositories, cards

    async def whoami(self, request: Request) -> Response:
        account = self._account(request)
        if account is None:
            raise HubError(401, None, "Invalid username or password.")
        return JSONResponse({"type": "user", "name": account.name, "orgs": []})

    async def create(self, request: Request) -> Response:
        wanted, account = await request.json(), self._account(request)
        id = f"{wanted.get('organization') or (account.name if account else '')}/{wanted['name']}"
        self._may_write(account, id)
        kind = wanted.get("type") or "model"
        url = f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{id}"
        if (kind, id) in self.repositories:
            return JSONResponse({"error": f"You already created this {kind} repo", "url": url}, 409)
        if kind == "space" and wanted.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, None, "A Space needs an sdk")
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        repository = Repository(kind, id, private, sdk=wanted.get("sdk"), hardware=wanted.get("hardware"))
        repository.variables |= {item["key"]: item["value"] for item in wanted.get("variables") or []}
        self.repositories[kind, id] = repository
        return JSONResponse({"url": url, "name": id, "id": id})

    async def validate_card(self, request: Request) -> Response:
        body = await request.json()
        errors, warnings = card_problems(body["content"], body.get("repoType") or "model")
        answer = {name: [{"message": text} for text in texts] for name, texts in (("errors", errors), ("warnings", warnings))}
        return JSONResponse(answer, 400 if errors else 200)

    async def info(self, request: Request) -> Response:
        repository = self._repository(request)
        commit = self._commit(request, repository)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
        if request.query_params.get("blobs"):
            for sibling, blob in zip(siblings, commit.files.values(), strict=True):
                sibling |= {"size": len(blob.data), "blobId": blob.git_oid}
                if blob.lfs:
                    sibling["lfs"] = {"size": len(blob.data), "sha256": blob.sha256, "pointerSize": 134}
        answer = {"id": repository.id, "sha": commit.oid, "private": repository.private, "siblings": siblings, "tags": []}
        if repository.kind == "space":
            answer["sdk"] = repository.sdk
        return JSONResponse(answer)

    async def tree(self, request: Request) -> Response:
        files = self._commit(request, self._repository(request)).files
        below = unquote(request.path_params.get("path", ""))
        return JSONResponse([entry(path, blob) for path, blob in files.items() if not below or path.startswith(below + "/")])

    async def paths_info(self, request: Request) -> Response:
        files = self._commit(request, self._repository(request)).files
        asked = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([entry(path, files[path]) for path in asked if path in files])

    async def refs(self, request: Request) -> Response:
        repository = self._repository(request)
        named = {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repository.branches.items()],
            "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()],
        }
        return JSONResponse({**named, "converts": []})

    async def tag(self, request: Request) -> Response:
        repository = self._repository(request, write=True)
        commit, name = self._commit(request, repository), (await request.json())["tag"]
        if name in repository.tags:
            raise HubError(409, None, "Tag reference exists already")
        repository.tags[name] = commit.oid
        return Response()

    async def branch(self, request: Request) -> Response:
        repository, name = self._repository(request, write=True), unquote(request.path_params["branch"])
        if name in repository.branches:
            raise HubError(409, None, "Reference already exists")
        start = repository.find((await request.json()).get("startingPoint") or "main")
        if start is None:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        repository.branches[name] = start.oid
        return Response()

    async def variables(self, request: Request) -> Response:
        repository = self._repository(request, write=True)
        if request.method == "POST":
            body = await request.json()
            repository.variables[body["key"]] = body["value"]
        return JSONResponse({key: {"key": key, "value": value} for key, value in repository.variables.items()})

    async def hardware(self, request: Request) -> Response:
        repository = self._repository(request, write=True)
        repository.hardware = (await request.json())["flavor"]
        return JSONResponse({"stage": "BUILDING", "hardware": {"current": None, "requested": repository.hardware}})

    # Uploads

    async def preupload(self, request: Request) -> Response:
        repository = self._repository(request, write=True)
        files, answers = self._commit(request, repository).files, []
        for file in (await request.json())["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
            old = files.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": old.etag if old else None,
                }
            )
        return JSONResponse({"files": answers})

    async def lfs_batch(self, request: Request) -> Response:
        self._repository(request, write=True)
        objects: list[dict[str, Any]] = []
        for wanted in (await request.json())["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            known: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.objects:
                upload: dict[str, Any] = {"href": f"{self.storage}/storage/{oid}?signature=s"}
                if size > PART:
                    parts = range(1, -(-size // PART) + 1)
                    header = {str(n): f"{self.storage}/storage/{oid}/{n}?signature=s" for n in parts}
                    upload = {"href": f"{self.endpoint}/lfs/complete/{oid}", "header": {"chunk_size": str(PART), **header}}
                known["actions"] = {"upload": upload, "verify": {"href": f"{self.endpoint}/lfs/verify"}}
            objects.append(known)
        return JSONResponse({"transfer": "multipart", "objects": objects})

    async def lfs_put(self, request: Request) -> Response:
        if "signature" not in request.query_params or "authorization" in request.headers:
            raise HubError(403, None, "Storage takes signed addresses and no tokens")
        oid, data = request.path_params["oid"], await request.body()
        if "part" in request.path_params:
            self.parts[oid, request.path_params["part"]] = data
        elif hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, None, "What came is not what was announced")
        else:
            self.objects[oid] = data
        return Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def lfs_complete(self, request: Request) -> Response:
        oid, body = request.path_params["oid"], await request.json()
        data = b"".join(self.parts[oid, part["partNumber"]] for part in sorted(body["parts"], key=lambda p: p["partNumber"]))
        if hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, None, "The parts together are not what was announced")
        self.objects[oid] = data
        return JSONResponse({})

    async def lfs_verify(self, request: Request) -> Response:
        body = await request.json()
        if len(self.objects.get(body["oid"], b"")) != body["size"]:
            raise HubError(404, None, "Object not found")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        """All of the commit's lines, or none of them."""
        repository, branch = self._repository(request, write=True), unquote(request.path_params["revision"])
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if branch not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        if header.get("parentCommit") not in (None, repository.branches[branch]):
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[repository.branches[branch]].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self.objects[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
            elif line["key"] != "header":
                raise HubError(400, None, f"Unknown key {line['key']}")
        oid = repository.commit(branch, header["summary"], files)
        return JSONResponse({"commitUrl": f"{self.endpoint}/{repository.id}/commit/{oid}", "commitOid": oid, "success": True})

    # Downloads

    async def resolve(self, request: Request) -> Response:
        """Where a file is: large ones in storage, small ones a redirect further on the Hub itself."""
        repository, path = self._repository(request), unquote(request.path_params["path"])
        commit = self._commit(request, repository)
        facts = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(path)
        if blob is None:
            answer = HubError(404, "EntryNotFound", "Entry not found").response
            answer.headers["X-Repo-Commit"] = commit.oid
            return answer
        facts |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        if blob.lfs:
            self.objects.setdefault(blob.sha256, blob.data)
            return RedirectResponse(f"{self.storage}/storage/{blob.sha256}?signature=s", 302, {**facts, "ETag": f'"{blob.etag}"'})
        kind = {"model": "models", "space": "spaces", "dataset": "datasets"}[repository.kind]
        return RedirectResponse(f"/api/resolve-cache/{kind}/{repository.id}/{commit.oid}/{path}", 307, facts)

    async def resolve_cache(self, request: Request) -> Response:
        blob = self._commit(request, self._repository(request)).files[unquote(request.path_params["path"])]
        headers = {"X-Repo-Commit": request.path_params["revision"], "ETag": f'"{blob.etag}"'}
        return served(request, blob.data, headers)

    async def storage_get(self, request: Request) -> Response:
        if "signature" not in request.query_params or "authorization" in request.headers:
            raise HubError(403, None, "Storage takes signed addresses and no tokens")
        oid = request.path_params["oid"]
        return served(request, self.objects[oid], {"ETag": f'"{oid}"'})

    def _cut(self, scope: Scope) -> None:
        """End a connection as a broken network does."""
        for connection in list(self.server.server_state.connections):
            if getattr(connection, "client", None) == tuple(scope["client"]):
                connection.transport.abort()

    def _app(self) -> ASGIApp:
        repo = "/api/{kind}/{owner}/{name}"
        routes: list[tuple[str, Callable[[Request], Awaitable[Response]], list[str]]] = [
            ("/api/whoami-v2", self.whoami, ["GET"]),
            ("/api/repos/create", self.create, ["POST"]),
            ("/api/validate-yaml", self.validate_card, ["POST"]),
            ("/api/resolve-cache/{kind}/{owner}/{name}/{revision}/{path:path}", self.resolve_cache, ["GET", "HEAD"]),
            (repo, self.info, ["GET"]),
            (repo + "/revision/{revision:path}", self.info, ["GET"]),
            (repo + "/tree/{revision}", self.tree, ["GET"]),
            (repo + "/tree/{revision}/{path:path}", self.tree, ["GET"]),
            (repo + "/paths-info/{revision}", self.paths_info, ["POST"]),
            (repo + "/preupload/{revision}", self.preupload, ["POST"]),
            (repo + "/commit/{revision}", self.commit, ["POST"]),
            (repo + "/tag/{revision}", self.tag, ["POST"]),
            (repo + "/branch/{branch:path}", self.branch, ["POST"]),
            (repo + "/refs", self.refs, ["GET"]),
            (repo + "/variables", self.variables, ["GET", "POST"]),
            (repo + "/hardware", self.hardware, ["POST"]),
            ("/lfs/complete/{oid}", self.lfs_complete, ["POST"]),
            ("/lfs/verify", self.lfs_verify, ["POST"]),
            ("/storage/{oid}", self.lfs_put, ["PUT"]),
            ("/storage/{oid}/{part:int}", self.lfs_put, ["PUT"]),
            ("/storage/{oid}", self.storage_get, ["GET", "HEAD"]),
            ("/{kind}/{owner}/{name}.git/info/lfs/objects/batch", self.lfs_batch, ["POST"]),
            ("/{owner}/{name}.git/info/lfs/objects/batch", self.lfs_batch, ["POST"]),
            ("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve, ["GET", "HEAD"]),
            ("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve, ["GET", "HEAD"]),
        ]
        app = Starlette(routes=[Route(path, call, methods=methods) for path, call, methods in routes])
        app.add_exception_handler(HubError, lambda request, error: error.response)
        return Faults(app, self.faults, self.requests, self._cut)


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """A file as a tree lists it."""
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    if blob.lfs:
        facts["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return facts


def served(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """A file, or the part of it that the Range header asks for, in pieces."""
    status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked:
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        status, data = 206, data[first : last + 1]
    headers |= {"Content-Length": str(len(data)), "Accept-Ranges": "bytes"}

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 2**16):
            yield data[at : at + 2**16]

    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(pieces(), status, headers)


@contextlib.contextmanager
def logged_in(user: str = "you") -> Iterator[tuple[HubServer, dict[str, str]]]:
    """A stand-in with one account, and the environment in which a command finds it, logged in and with an empty cache."""
    token = "hf_demonstration"
    with HubServer({token: Account(user)}) as hub, tempfile.TemporaryDirectory() as home:
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": home,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        yield hub, {**os.environ, **settings}


if __name__ == "__main__":
    with logged_in() as (_, environment):
        code = subprocess.run(sys.argv[1:], env=environment, cwd=Path(__file__).parents[1]).returncode
    sys.exit(code)
