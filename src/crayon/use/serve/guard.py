"""What every request to the served page passes before a model sees it: which host it asks for, and whose it is.

The page has no password. On loopback every site that is open in the same browser could send requests to it, or, with a
name that suddenly points to 127.0.0.1 (DNS rebinding), even read the answers. So Host must be an address or a name that
is known here, and what a browser says comes from another site is refused. Starlette's TrustedHostMiddleware knows names
only: it can't let through every address, and refuses with a bare 400.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from crayon.fast.serve_headers import end_silent_connections

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
    "cache-control": "no-store",
}
"""On every answer. Nothing is loaded from other hosts, and no page of others may show this one in a frame."""

NAMES = "CRAYON_SERVE_NAMES"
"""Host names for the guard in Serve's proxy, with commas between: a variable of its process."""
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d{1,5})?", re.ASCII)


class Guard:
    """ASGI middleware. Refuses with a JSON sentence: 421 another host, 403 another site."""

    def __init__(self, app: ASGIApp, *, names: Collection[str]):
        """names: host names by which the page may be asked for, beside addresses and localhost."""
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self.app
        if scope["type"] == "http":
            answer = self._refusal(Headers(scope=scope), scope["method"]) or self.app
        elif scope["type"] == "websocket":
            answer = WebSocketClose(1008)
        await answer(scope, receive, secured)

    def _refusal(self, headers: Headers, method: str) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._known(host):
            name = host[:80] or "nameless"
            sentence = f"This server is not {name!r}; ask for it by its address, or start it with --names."
            return JSONResponse({"error": sentence}, 421)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        foreign = site not in ("none", "same-origin") and not follows_link
        if origin is not None:
            # Behind a proxy the scheme may differ; another scheme with the same name and port is no other site's.
            foreign |= origin == "null" or urlsplit(origin).netloc.lower() != host.lower()
        return JSONResponse({"error": "Requests from other sites are refused."}, 403) if foreign else None

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        name = (match[1] or match[2]).lower().rstrip(".") if match else ""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


def in_proxy() -> list[Middleware]:
    """For Serve's HTTP proxy, which calls what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, and answers /-/routes
    and /-/healthz by itself."""
    end_silent_connections()
    return [Middleware(Guard, names=os.environ.get(NAMES, "").split(","))]
