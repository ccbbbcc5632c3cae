"""What every request to the served page passes before a model sees it: whose it is, how large, how many.

The page has no password. On loopback every site that is open in the same browser could send requests to it, or, with a
name that suddenly points to 127.0.0.1 (DNS rebinding), even read the answers. So Host must be an address or a name that
is known here, and what a browser says comes from another site is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

BODY_SECONDS = 20.0
"""How long a request's body may take to arrive."""
FORGOTTEN = 4
"""So many times the largest body are taken from a client before it is told that its request is too large."""
BURST_SECONDS = 2.0
"""So many seconds' worth of requests may come at once."""
ALL_CLIENTS = 8
"""All clients together may send as many requests as this many: who comes through a proxy can claim any address."""
MOST_CLIENTS = 4096
"""Addresses that are remembered."""

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


class Refused(Exception):
    """The request ends with this status and sentence."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Guard:
    """ASGI middleware. Refuses with a JSON sentence: 421 another host, 403 another site, 429 too many requests, 413 too
    large, 408 too slow."""

    def __init__(self, app: Any, *, names: Collection[str], max_bytes: int, rate: float):
        """names: host names by which the page may be asked for, beside addresses and localhost. rate: requests per
        second and client address."""
        self.app, self.max_bytes = app, max_bytes
        self.names = {"localhost", *(name.lower() for name in names)}
        self.limits = Limits(rate)

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
            self.limits.check((scope.get("client") or ("",))[0])
            body = await self._body(headers, receive)
        except Refused as refused:
            await answer(secured, refused)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), secured)

    async def _body(self, headers: dict[str, str], receive: Any) -> bytes | None:
        """The whole body; None where the client has left.

        Of one that is too large a part is still taken and forgotten: a client whose connection is closed while it
        sends doesn't read why.
        """
        most, kept, count = self.max_bytes, bytearray(), 0
        announced = headers.get("content-length", "0")
        fits = announced.isdigit() and int(announced) <= most
        if fits or (announced.isdigit() and int(announced) <= FORGOTTEN * most):
            try:
                async with _timeout(BODY_SECONDS):
                    more = True
                    while more and count <= FORGOTTEN * most:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return None
                        part, more = message.get("body", b""), message.get("more_body", False)
                        count += len(part)
                        fits = fits and count <= most
                        if fits:
                            kept += part
            except asyncio.TimeoutError:
                sentence = f"The request took more than {BODY_SECONDS:g} s to arrive."
                raise Refused(408, sentence, connection="close") from None
        if not fits:
            sentence = f"The request is too large; at most {most / 2**20:g} MiB are taken."
            raise Refused(413, sentence, connection="close")
        return bytes(kept)


class Limits:
    """A token bucket for each client address, and a larger one for all of them.

    With a clock of one's own it can be tried without waiting.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.clock = rate, clock
        self.clients: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.all = (self._burst(ALL_CLIENTS), clock())

    def check(self, client: str) -> None:
        """Count one request. Raises Refused (429, with Retry-After in whole seconds)."""
        now = self.clock()
        full = (self._burst(1), now)
        mine = self._refilled(self.clients.pop(client, full), now, 1)
        everyone = self._refilled(self.all, now, ALL_CLIENTS)
        fits = mine >= 1 and everyone >= 1
        self.clients[client] = (mine - fits, now)
        self.all = (everyone - fits, now)
        if len(self.clients) > MOST_CLIENTS:
            self.clients.popitem(last=False)
        if not fits:
            wait = max((1 - mine) / self.rate, (1 - everyone) / (self.rate * ALL_CLIENTS))
            sentence = f"Too many requests; at most {self.rate:g} a second are answered. Wait a moment."
            raise Refused(429, sentence, retry_after=str(math.ceil(wait)))

    def _burst(self, clients: int) -> float:
        return max(1.0, self.rate * BURST_SECONDS) * clients

    def _refilled(self, bucket: tuple[float, float], now: float, clients: int) -> float:
        tokens, then = bucket
        return min(self._burst(clients), tokens + (now - then) * self.rate * clients)


async def answer(send: Any, refused: Refused) -> None:
    """Send the refusal as `{"error": sentence}`."""
    body = json.dumps({"error": refused.sentence}).encode()
    extra = [(name.replace("_", "-").encode(), value.encode()) for name, value in refused.headers.items()]
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Any) -> dict[str, str]:
    """By lower-case name. One that stands there twice is refused where it decides anything."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "content-length"):
            raise Refused(400, f"The request has the header {key} twice.")
        found[key] = value.decode("latin-1")
    return found


def _check_host(host: str, names: Collection[str]) -> None:
    name = _host_name(host)
    if name in names or _is_address(name):
        return
    raise Refused(
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
        raise Refused(403, "Requests from other sites are refused.")


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


class _timeout:
    """asyncio.timeout, which Python has from 3.11 on."""

    def __init__(self, seconds: float):
        self.seconds, self.over = seconds, False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            self.over = True
            task.cancel()

        self.handle = asyncio.get_running_loop().call_later(self.seconds, cancel)

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.handle.cancel()
        if self.over and kind is asyncio.CancelledError:
            raise asyncio.TimeoutError from None
