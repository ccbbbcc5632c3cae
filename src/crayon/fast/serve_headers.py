"""An end to connections that ask for nothing, in Serve's HTTP proxy: uvicorn, which it runs, has no such limit."""

from __future__ import annotations

import logging
from typing import Any

HEADER_SECONDS = 20.0


def end_silent_connections(seconds: float = HEADER_SECONDS) -> None:
    """From now on a connection is closed that has begun no request for `seconds`, as one whose headers never end. Left
    as it is, with a line in the log, where uvicorn is made differently."""
    try:
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        protocol: Any = AutoHTTPProtocol
        made = protocol.connection_made
    except (ImportError, AttributeError) as error:
        logging.getLogger("crayon").warning("Connections to the page may ask for nothing for ever: %s", error)
        return

    def connection_made(self: Any, transport: Any) -> None:
        def look(before: Any) -> None:
            now = self.cycle  # the request under way, or the last one
            if now is before and (now is None or now.response_complete):
                transport.close()
            elif not transport.is_closing():
                self.loop.call_later(seconds, look, now)

        made(self, transport)
        self.loop.call_later(seconds, look, None)

    protocol.connection_made = connection_made
