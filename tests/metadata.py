"""What a cloud tells its instances, as a server on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    ("PUT", "/latest/api/token"): "a token",
    ("GET", "/latest/meta-data/spot/instance-action"): None,
    ("GET", "/computeMetadata/v1/instance/preempted"): "FALSE",
    ("GET", "/metadata/instance/compute/name"): "this-one",
    ("GET", "/metadata/scheduledevents"): json.dumps(
        {
            "Events": [
                {"EventType": "Preempt", "Resources": ["another"]},
                {"EventType": "Reboot", "Resources": ["this-one"]},
            ]
        }
    ),
}
NOTICES = {
    (
        "GET",
        "/latest/meta-data/spot/instance-action",
    ): '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}',
    ("GET", "/computeMetadata/v1/instance/preempted"): "TRUE",
    ("GET", "/metadata/scheduledevents"): json.dumps(
        {"Events": [{"EventType": "Preempt", "Resources": ["this-one"], "NotBefore": ""}]}
    ),
}
ASKED = {
    "aws": ("X-aws-ec2-metadata-token", "a token"),
    "gcp": ("Metadata-Flavor", "Google"),
    "azure": ("Metadata", "true"),
}
"""The header without which a cloud answers nothing."""


@contextlib.contextmanager
def cloud(name: str, *, notice: bool) -> Iterator[str]:
    """The address of the metadata of an instance that is, or isn't, about to be taken away."""
    answers = ANSWERS | (NOTICES if notice else {})

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            header, value = ASKED[name]
            text = answers.get((self.command, self.path.partition("?")[0]))
            if self.command == "GET" and self.headers.get(header) != value:
                self.send_error(401)
            elif text is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

        do_GET = do_PUT = answer

        def log_message(self, *what: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
