"""As much of a W&B server as its client needs to believe that it is online, on loopback, to be taken away."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import threading

RUN = {"id": "1", "name": "r", "displayName": "r", "historyLineCount": 0, "config": "{}", "sweepName": None}
VIEWER = {"id": "1", "entity": "us", "username": "us", "flags": "{}", "email": "", "teams": {"edges": []}}
ANSWERS = {
    "viewer": VIEWER,
    "serverInfo": {"cliVersionInfo": {"max_cli_version": "9", "min_cli_version": "0"}, "features": []},
    "upsertBucket": {"bucket": RUN | {"project": {"name": "p", "entity": {"name": "us"}}}, "inserted": True},
    "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
}


class Server:
    """`with Server() as server`: what it was sent is in `rows`, from which it lets a run be resumed.

    rows: what it has already; the same as another server's = it is that one, come back."""

    def __init__(self, port: int = 0, rows: list[dict] | None = None) -> None:
        self.rows: list[dict] = [] if rows is None else rows
        self._open: set[socket.socket] = set()
        us = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def setup(self) -> None:
                us._open.add(self.request)
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = {}
                if self.path == "/graphql":
                    answer = {"data": ANSWERS | {"model": us._model()}}
                elif self.path.endswith("/file_stream"):
                    us._take(json.loads(body))
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_PATCH = do_POST

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # connections that are cut on purpose
        self.port = self._server.server_address[1]

    def _model(self) -> dict | None:
        """The run as it stands, None where nothing was sent of it."""
        if not self.rows:
            return None
        project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "us"}}
        counts = {"historyLineCount": len(self.rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(self.rows[-1])]), "eventsTail": "[]"}
        about = {"summaryMetrics": "{}", "tags": [], "notes": "", "wandbConfig": "{}"}
        return project | {"bucket": RUN | counts | tails | about}

    def _take(self, sent: dict) -> None:
        content = sent.get("files", {}).get("wandb-history.jsonl", {})
        lines, offset = content.get("content", []), content.get("offset", len(self.rows))
        self.rows[offset:] = [json.loads(line) for line in lines]

    def close(self) -> None:
        self._server.server_close()

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """No new connections, and those that are open are cut."""
        self._server.shutdown()
        self.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
