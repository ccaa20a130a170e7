"""What the page refuses: other hosts and origins, and requests above its limits.

The server listens on this machine only, but any site that is open in the same browser can send requests to it. A
request must therefore name this machine in its Host header (a site whose name was rebound to 127.0.0.1 names its own),
and a request with an Origin, or with Sec-Fetch-Site, must come from the page itself.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.ASCII)
MAX_JSON = 64 * 2**10  # bytes
MAX_REQUESTS = 12  # at a time: a browser opens at most 6 connections to a page
SECONDS = 60.0  # that a client has to send a request, or to take an answer
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
    follows_link = origin is None and headers.get("sec-fetch-mode") == "navigate"  # in a tab of its own
    if not follows_link and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests of other sites are refused"
    return ""


class Guard:
    """ASGI middleware: answers foreign requests with 403, those above MAX_REQUESTS with 503; adds HEADERS to all."""

    def __init__(self, app: ASGIApp):
        self._app, self._free = app, asyncio.Semaphore(MAX_REQUESTS)

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
        elif self._free.locked():
            busy = f"the server is busy with {MAX_REQUESTS} requests; try again in a moment"
            await error_response(503, busy)(scope, receive, with_headers)
        else:
            async with self._free:
                await self._app(scope, receive, with_headers)


class Timed(H11Protocol):
    """HTTP of uvicorn, which ends a connection that takes longer than SECONDS to send a request or take an answer.

    It looks every SECONDS, so a connection may take up to twice that. uvicorn itself has a limit between two requests
    only. The time of computing an answer does not count.
    """

    _timer: Any = None

    def connection_made(self, transport: Any) -> None:
        """Starts the time of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def on_response_complete(self) -> None:
        """Starts the time to take the answer and to send the next request."""
        self._start_timer()
        super().on_response_complete()

    def _start_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(SECONDS, self._end_if_late, self.cycle)

    def _end_if_late(self, previous: Any) -> None:
        now = self.cycle
        waits = now is None or now.response_complete or now.more_body or self.flow.write_paused
        if waits and now is previous:
            self.transport.abort()
        else:
            self._start_timer()


def error_response(status: int, message: str) -> JSONResponse:
    """The response to a request that is not answered: {"error": one line}."""
    return JSONResponse({"error": " ".join(message.split())}, status)


async def body_of(request: Request, limit: int) -> bytes:
    """Reads the body of a request; raises Refused if it has more than `limit` bytes, without reading the rest."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Refused(413, f"too large: more than {limit:,} bytes")
    return bytes(body)


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
