"""What every request to the served page passes before a model sees it: which host it asks for, whose it is, how large.

The page has no password. On loopback every site that is open in the same browser could send requests to it, or, with a
name that suddenly points to 127.0.0.1 (DNS rebinding), even read the answers. So Host must be an address or a name that
is known here, and what a browser says comes from another site is refused. Starlette's TrustedHostMiddleware knows names
only: it can't let through every address, and refuses with a bare 400.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

MOST_READ = 4
"""So many times the largest body are taken before a client is told that its request is too large: one whose connection
is closed while it sends doesn't read why."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""On every answer. Nothing is loaded from other hosts, and no page of others may show this one in a frame."""

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d{1,5})?", re.ASCII)


class HTTPRefusal(Exception):
    """The request ends with this status and sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """ASGI middleware. Refuses with a JSON sentence: 421 another host, 403 another site, 413 too large."""

    def __init__(self, app: Any, *, names: Collection[str], max_bytes: int):
        """names: host names by which the page may be asked for, beside addresses and localhost."""
        self.app, self.max_bytes = app, max_bytes
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        try:
            headers = _headers(scope)
            _check_host(headers.get("host", ""), self.names)
            _check_origin(headers, scope["method"])
            body = await self._body(receive)
        except HTTPRefusal as refused:
            await answer(secured, refused)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), secured)

    async def _body(self, receive: Any) -> bytes | None:
        """The whole body; None where the client has left."""
        kept, count, more = bytearray(), 0, True
        while more and count <= MOST_READ * self.max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            count += len(part)
            if count <= self.max_bytes:
                kept += part
        if count > self.max_bytes:
            raise HTTPRefusal(
                413, f"The request is too large; at most {self.max_bytes / 2**20:g} MiB are taken."
            )
        return bytes(kept)


async def answer(send: Any, refused: HTTPRefusal) -> None:
    """Send the refusal as `{"error": sentence}`."""
    body = json.dumps({"error": refused.sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        # What was not read of a body that is too large must not be taken for the next request.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Any) -> dict[str, str]:
    """By lower-case name. One that stands there twice is refused where it decides anything."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin"):
            raise HTTPRefusal(400, f"The request has the header {key} twice.")
        found[key] = value.decode("latin-1")
    return found


def _check_host(host: str, names: Collection[str]) -> None:
    name = _host_name(host)
    if name in names or _is_address(name):
        return
    raise HTTPRefusal(
        421,
        f"This server is not {host[:80] or 'nameless'!r}; ask for it by its address, or start it with --names.",
    )


def _check_origin(headers: dict[str, str], method: str) -> None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    foreign = site not in ("none", "same-origin") and not follows_link
    if origin is not None:
        # Behind a proxy the scheme may differ; another scheme with the same name and port is no other site's.
        foreign |= origin == "null" or urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign:
        raise HTTPRefusal(403, "Requests from other sites are refused.")


def _host_name(host: str) -> str:
    """The name or address in a Host header, without its port, in lower case; "" where it isn't one."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _replay(body: bytes, receive: Any) -> Any:
    """`receive` for the app: the body that was read already, then whatever comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Any:
        return left.pop() if left else await receive()

    return replayed
