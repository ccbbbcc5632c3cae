"""A request to an ASGI application in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal, which has nothing beside it."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        return self.json["error"]


def request(*what: Any, **how: Any) -> Answer:
    """As `answered`, by itself."""
    return asyncio.run(answered(*what, **how))


async def answered(
    app: Any,
    method: str,
    address: str,
    body: bytes = b"",
    *,
    chunk: int = 0,
    stall: bool = False,
    **headers: str,
) -> Answer:
    """headers: by name with _ for -. chunk: send the body in pieces of so many bytes without telling its length. stall:
    never send it."""
    path, _, query = address.partition("?")
    sent = {"host": "127.0.0.1:8000"} | ({} if chunk else {"content-length": str(len(body))})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "server": ("127.0.0.1", 8000),
    }
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] if chunk else [body]
    messages: list[Any] = []

    async def receive() -> Any:
        if not pieces or stall:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        messages.append(message)

    try:
        await app(scope, receive, send)
    except Exception:  # once it is answered, a failure is raised again for the server's log
        if not messages:
            raise
    start = messages[0]
    content = b"".join(message.get("body", b"") for message in messages[1:])
    return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content)
