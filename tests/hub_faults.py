"""What can go wrong between a client and the stand-in Hub (`hub_server`), on demand; and a record of every request."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    line: str  # "METHOD /path"
    headers: dict[str, str]
    time: float


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" matches `where`.

    kind:
        "status": answers `status` with `headers`
        "drop": the connection is cut after `after` bytes of the answer, or of what is uploaded
        "stall": nothing more comes after `after` bytes of the answer
        "lost": what was asked is done, and the answer is cut off
        "slow": the answer starts `seconds` late
        "etag": the file has another ETag than it should
        "corrupt": the byte at `after` is another one
    """

    kind: str
    where: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    seconds: float = 0.0


class Faults:
    """Notes every request, and makes go wrong what was asked to."""

    def __init__(self, app: ASGIApp, faults: list[Fault], requests: list[Seen], cut: Callable[[Scope], None]) -> None:
        self.app, self.faults, self.requests, self.cut = app, faults, requests, cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = f"{scope['method']} {scope['path']}"
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self.requests.append(Seen(request, headers, time.monotonic()))
        fault = next((f for f in self.faults if f.times > 0 and re.search(f.where, request)), None)
        if fault is None:
            return await self.app(scope, receive, send)
        fault.times -= 1
        if fault.kind == "status":
            return await JSONResponse({"error": "a fault"}, fault.status, fault.headers)(scope, receive, send)
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
            return await self.app(scope, receive, send)
        if fault.kind == "drop" and scope["method"] in ("PUT", "POST"):
            received = 0
            while received <= fault.after:
                message = await receive()
                received += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            return self.cut(scope)
        sent, after = 0, 0 if fault.kind == "lost" else fault.after

        async def faulty(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start" and fault.kind == "etag":
                other = [(b"etag", b'"%s"' % (b"0" * 40)), (b"x-linked-etag", b'"%s"' % (b"0" * 40))]
                replaced = {name for name, _ in other}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in replaced]
                message = {**message, "headers": kept + other}
            if message["type"] == "http.response.body" and fault.kind in ("drop", "stall", "lost", "corrupt"):
                body, at = message.get("body", b""), after - sent
                sent += len(body)
                if fault.kind == "corrupt" and 0 <= at < len(body):
                    message = {**message, "body": body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]}
                if fault.kind != "corrupt" and at < len(body):
                    await send({**message, "body": body[: max(0, at)], "more_body": True})
                    if fault.kind == "stall":
                        await receive()  # until the client is gone
                    return self.cut(scope)
            await send(message)

        await self.app(scope, receive, faulty)
