"""What stands before the application: who may ask, how long a body may be, and the count of what was asked."""

import asyncio
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deformer.api.service import problems
from deformer.api.service.problems import CLOSE, Crowded, TooLarge, TooSlow

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Admission:
    """Who may ask.

    Args:
        token: What clients must send as `Authorization: Bearer ...`. None: nothing.
        hosts: Names under which the service may be addressed, so that a page of another site cannot reach it by a name
            that it points here. None: any.
    """

    token: str | None = None
    hosts: tuple[str, ...] | None = None

    def refuses(self, scope: Scope) -> HTTPException | None:
        """Say why a request is refused, if it is; pages, health and metrics need no token."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name_in(f"//{host}") not in self.hosts:
            return HTTPException(403, f"The service does not go by the name {host!r}.", CLOSE)
        if not scope["path"].startswith("/v1/"):
            return None
        origin = headers.get("origin")
        if scope["type"] == "websocket" and origin is not None and origin.partition("//")[2] != host:
            return HTTPException(403, "A page of another site cannot open a socket here.")
        given, wanted = headers.get("authorization", ""), f"Bearer {self.token}"
        if self.token is None or hmac.compare_digest(given.encode(), wanted.encode()):
            return None
        return HTTPException(401, "Send the token as Authorization: Bearer ...", CLOSE)


def _name_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as an open bracket
        return None


class Guard:
    """ASGI middleware: refuses, bounds bodies, and counts and times requests by route.

    Args:
        limit: Bytes of a body to a route in `large`.
        small: Bytes of any other, which is read where all others wait for it.
        held: Bytes of all bodies whose requests are not answered yet.
        seconds: In which a body must arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        limit: int,
        small: int,
        large: Collection[str],
        held: int,
        seconds: float,
        count: Counter,
        took: Histogram,
    ) -> None:
        self.app, self.admission, self.limit, self.small, self.large = app, admission, limit, small, large
        self.most_held, self.seconds, self.count, self.took = held, seconds, count, took
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self.admission.refuses(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": str(refusal.detail)})
            return
        status, start, read, more = 500, time.perf_counter(), 0, True
        limit = self.limit if scope["path"] in self.large else self.small

        async def bounded() -> Message:
            nonlocal read, more
            if not more:  # what follows the body is a client that goes away, whenever that may be
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), start + self.seconds - time.perf_counter())
            except TimeoutError:
                raise TooSlow from None
            arrived, more = len(message.get("body", b"")), message.get("more_body", False)
            read, self._held = read + arrived, self._held + arrived
            if read > limit:
                raise TooLarge
            if self._held > self.most_held:
                raise Crowded
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if refusal is None:
                await self.app(scope, bounded, noted)
            else:
                await (await problems.answer(Request(scope), refusal))(scope, receive, noted)
        finally:
            self._held -= read
            route = getattr(scope.get("route"), "path", "other")
            self.count.labels(route, str(status)).inc()
            self.took.labels(route).observe(time.perf_counter() - start)
