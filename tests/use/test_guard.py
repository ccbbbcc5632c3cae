"""What every request to the served page passes first. The application behind it only says that it was reached."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from asgi import request
from uvicorn.protocols.http import auto

from crayon.fast import serve_headers
from crayon.use.serve.guard import Guard

OURS = [
    "127.0.0.1:8000", "localhost", "LOCALHOST:9", "[::1]:8000", "[::1]", "[::ffff:127.0.0.1]:8000", "192.168.0.7",
    "faces.example", "faces.example.",
]  # fmt: skip
# A site can make its own name point to 127.0.0.1; what its page asks for then arrives with that name.
FOREIGN = [
    "evil.example", "evil.example:8000", "[evil.example]:8000", "127.0.0.1.evil.example", "::1", "[::1",
    "[::1].evil.example", "a@localhost", "local\thost", "",
]  # fmt: skip


async def reached(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})


def guarded(names=()):
    return Guard(reached, names=names)


@pytest.mark.parametrize("host", OURS)
def test_addresses_and_known_names_are_answered(host):
    assert request(guarded(names=["Faces.example"]), "GET", "/", host=host).status == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host):
    answer = request(guarded(), "GET", "/", host=host)
    assert answer.status == 421
    assert "--names" in answer.error


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 200),  # no browser
        ("POST", {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}, 200),
        ("GET", {"sec_fetch_site": "none"}, 200),  # typed into the address bar
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),  # a link to this page
        ("GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),  # an <img> elsewhere
        ("GET", {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),  # this machine's other port
        ("POST", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),  # a form
        ("POST", {"origin": "https://evil.example"}, 403),  # browsers without Sec-Fetch
        ("POST", {"origin": "http://127.0.0.1:3000"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("GET", {"origin": "http://127.0.0.1:8000.evil.example"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(method, headers, status):
    assert request(guarded(), method, "/", **headers).status == status


def test_every_answer_is_locked_down():
    for answer in (request(guarded(), "GET", "/"), request(guarded(), "GET", "/", host="evil.example")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        parts = answer.headers["content-security-policy"].split("; ")
        policy = dict(part.split(" ", 1) for part in parts)
        assert policy.pop("img-src") == "'self' data: blob:"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"


def test_a_connection_whose_headers_never_end_is_closed_and_one_that_asks_is_not(monkeypatch):
    protocol = auto.AutoHTTPProtocol
    monkeypatch.setattr(protocol, "connection_made", protocol.connection_made)  # put back afterwards
    serve_headers.end_silent_connections(0.4)

    async def slow(scope, receive, send):
        await asyncio.sleep(1)
        await reached(scope, receive, send)

    async def talk():
        server = uvicorn.Server(uvicorn.Config(slow, port=0, lifespan="off", log_level="critical"))
        server.install_signal_handlers = lambda: None
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        half, whole = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        half[1].write(b"GET / HTTP/1.1\r\nHost: half")
        whole[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await asyncio.wait_for(half[0].read(), 0.9) == b""  # before the slow answer
        answer = await whole[0].readuntil(b"reached")
        whole[1].write(b"GET / HTTP/1.1\r\nHost: half")  # nor does one that has asked before keep it
        await asyncio.wait_for(whole[0].read(), 2)
        for _, writer in (half, whole):
            writer.close()
            await writer.wait_closed()
        server.should_exit = True
        await serving
        return answer

    assert b"200 OK" in asyncio.run(talk())


def test_websockets_are_closed():
    sent = []

    async def talk():
        async def send(message):
            sent.append(message)

        await guarded()({"type": "websocket", "headers": []}, None, send)

    asyncio.run(talk())
    assert [message["type"] for message in sent] == ["websocket.close"]
