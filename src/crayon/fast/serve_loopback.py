"""Where a replica of Ray Serve listens, for which Serve has no setting. `use.serve.command` looks whether it worked."""

from __future__ import annotations

import logging


def listen_on_loopback() -> None:
    """In a replica, before it is told to start: the server at which other deployments would reach it listens on
    loopback instead of all interfaces. Left as it is, with a line in the log, where Serve is made differently."""
    try:
        from ray.serve._private import replica

        listen = replica.add_port_to_grpc_server
    except (ImportError, AttributeError) as error:
        logging.getLogger("crayon").warning("Ray Serve can't be told to listen on loopback alone: %s", error)
        return
    replica.add_port_to_grpc_server = lambda server, address: listen(
        server, address.replace("[::]", "127.0.0.1")
    )
