"""Ray's token: that a cluster of our own has one, and whether one that is joined asks for it and takes ours."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
from pathlib import Path
from secrets import token_hex

from crayon.errors import BadInput

ASK_SECONDS = 5.0
HELLO = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""With which Ray's own clients begin. Asked here first: Ray would ask for half a minute, with a warning each second."""
FILE = "~/.ray/auth_token"
MEND = f"set RAY_AUTH_MODE=token here, with the cluster's token in {FILE}."


def settle() -> None:
    """See that a cluster of our own has a token that nobody else knows, for whoever has it can run code there: this
    user's, where only this user can read it (Ray itself makes it readable by everyone), else one of this process."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    with contextlib.suppress(OSError):
        if os.stat(os.path.expanduser(FILE)).st_mode & 0o077 == 0:
            return
    os.environ["RAY_AUTH_TOKEN"] = _own()


@functools.cache
def _own() -> str:
    """Always the same: Ray reads its token once per process."""
    return token_hex(32)


def check(place: str) -> str:
    """What is to be told of the cluster at `place` (host:port): "" or that it asks for no token. Raises BadInput where
    it refuses ours."""
    if os.environ.get("RAY_USE_TLS") in ("1", "true") or (open_to_all := _answers(place, "")) is None:
        return ""  # Ray itself says what is wrong
    if open_to_all:
        return (
            f"The Ray cluster at {place} asks for no token: whoever reaches its ports can run code there. Start it "
            "with RAY_AUTH_MODE=token on every machine (below Ray 2.59 `ray start` doesn't ask by itself)."
        )
    sent, origin = _sent()
    if sent and _answers(place, sent) is False:
        raise BadInput(
            f"The Ray cluster at {place} doesn't take the token in {origin}; copy the head's {FILE} to this machine, "
            "with mode 600."
        )
    if sent == "":
        raise BadInput(f"The Ray cluster at {place} asks for a token: {MEND}")
    return ""


def _sent() -> tuple[str | None, str]:
    """The token that Ray will send, and where it has it from; "" = none, None = it can't be told."""
    newer = tuple(map(int, importlib.metadata.version("ray").split(".")[:2])) >= (2, 59)
    mode = os.environ.get("RAY_AUTH_MODE", "").lower() or ("token" if newer else "disabled")
    if mode != "token":
        return ("" if mode == "disabled" else None), ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or FILE
    try:
        return Path(path).expanduser().read_text().strip(), path
    except OSError:
        return "", ""


def _answers(place: str, token: str) -> bool | None:
    """Whether a cluster talks to somebody with this token; None where it says neither yes nor no."""
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    metadata = [("authorization", f"Bearer {token}")] if token else None
    try:
        with grpc.insecure_channel(place, options) as channel:
            channel.unary_unary(HELLO)(b"", timeout=ASK_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return False if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return True
