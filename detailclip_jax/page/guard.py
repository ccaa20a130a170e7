"""What the page refuses: other hosts and origins, and requests above its limits.

The server listens on this machine only, but any site that is open in the same browser can send requests to it. A
request must therefore name this machine in its Host header (a site whose name was rebound to 127.0.0.1 names itself),
and a request with an Origin, or with Sec-Fetch-Site, must come from the page itself.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.ASCII)
MAX_JSON = 64 * 2**10  # bytes
MAX_AT_ONCE = 12  # uploads, and requests that are computed or wait: a browser opens at most 6 connections to a page
SILENCE = 5.0  # seconds without a byte after which an upload ends
HEADERS = {  # of every response: the page loads nothing from elsewhere and cannot be framed
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not answered: the HTTP status, and one line for the user."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def foreign(headers: Mapping[str, str]) -> str:
    """Returns why a request does not come from the page on this machine; "" if it does."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if not LOCAL_HOST.fullmatch(host):
        return "this page answers requests to localhost only"
    if origin is not None and origin != f"http://{host}":
        return "requests of other sites are refused"
    follows_link = origin is None and headers.get("sec-fetch-mode") == "navigate"  # in a new tab
    if not follows_link and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests of other sites are refused"
    return ""


class Guard:
    """ASGI middleware: answers foreign requests with 403, and adds HEADERS to all answers."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request of the page on."""
        if scope["type"] != "http":  # start and end of the server; there are no web sockets
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        if reason := foreign(Headers(scope=scope)):
            await error_response(403, reason)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


class Places:
    """At most `number` requests at once do the same thing; those above are refused with 503."""

    def __init__(self, doing: str, number: int = MAX_AT_ONCE):
        self._doing, self._number, self._free = doing, number, asyncio.Semaphore(number)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Holds a place; raises Refused if none is free."""
        if self._free.locked():
            raise Refused(503, f"the server is {self._doing} {self._number} others; try again in a moment")
        async with self._free:
            yield


def error_response(status: int, message: str) -> JSONResponse:
    """The response to a request that is not answered: {"error": one line}; with 408 the connection ends."""
    headers = {"Connection": "close"} if status == 408 else None
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


async def body_of(request: Request, limit: int) -> bytes:
    """Reads the body of a request; raises Refused if it has more than `limit` bytes or stops for SILENCE seconds."""
    body, pieces = bytearray(), request.stream()
    while len(body) <= limit:
        with anyio.move_on_after(SILENCE) as waiting:
            piece = await anext(pieces, None)
            if piece is None:
                return bytes(body)
            body += piece
        if waiting.cancelled_caught:
            raise Refused(408, f"the upload stopped for {SILENCE:g} seconds; send it again")
    raise Refused(413, f"too large: more than {limit:,} bytes")


async def json_of(request: Request) -> dict[str, Any]:
    """Reads a JSON object; raises Refused for anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "expected application/json")
    try:
        body = json.loads(await body_of(request, MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the request is not valid JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "the request is not a JSON object")
    return body
