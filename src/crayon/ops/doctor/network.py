"""What of Ray other machines could reach, and the token that keeps strangers out of a cluster."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crayon.ops.doctor.findings import Finding, count, error, note, ok, warning
from crayon.system.host import is_loopback


def exposed(here: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """What of Ray other machines could reach, here and on nodes elsewhere, and whether it asks for the token."""
    places = {here["host"]: ("ports here", here["listeners"])}
    for node in nodes:
        if "failed" not in node["facts"]:
            places.setdefault(node["facts"]["host"], (f"ports {node['name']}", node["facts"]["listeners"]))
    for name, listeners in places.values():
        outside = [entry for entry in listeners if not is_loopback(entry[1])]
        if not outside:
            if nodes or listeners:
                yield ok(name, "nothing of Ray listens beyond loopback")
            continue
        # Where several clusters share a machine, only those without a token are told.
        without = [entry for entry in outside if not entry[3]]
        ports: dict[str, set[int]] = {}
        for which, _, port, _ in without or outside:
            ports.setdefault(which, set()).add(port)
        few = {
            w: ", ".join(map(str, sorted(f))) if len(f) <= 3 else count(len(f), "port")
            for w, f in ports.items()
        }
        text = ", ".join(f"{which} {found}" for which, found in few.items())
        if without:
            yield warning(
                name,
                f"{text} listen beyond loopback without a token: whoever reaches them can run code",
                "end Ray, export RAY_AUTH_MODE=token on every machine, start it again; and put a firewall before it",
            )
        else:
            yield note(name, f"{text} listen beyond loopback and ask for the token")


def token() -> Finding:
    """Whether clusters are started and reached with a token, and who could read it. It is not opened."""
    mode, set_mode = os.environ.get("RAY_AUTH_MODE", "").lower(), "export RAY_AUTH_MODE=token"
    chosen = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(chosen) if chosen else Path.home() / ".ray" / "auth_token"
    shown = chosen or "~/.ray/auth_token"
    if mode == "disabled":
        return warning("token", "RAY_AUTH_MODE=disabled", set_mode)
    if mode not in ("", "token"):
        return note("token", f"RAY_AUTH_MODE={mode}")
    if os.environ.get("RAY_AUTH_TOKEN"):
        text = "the token is in RAY_AUTH_TOKEN, where every process started from here can read it"
        return note("token", text) if mode else warning("token", text, set_mode)
    if not path.is_file() or not path.stat().st_size:
        make = f"{set_mode}; ray get-auth-token --generate > /dev/null; chmod 600 {shown}"
        if mode:
            return error("token", f"RAY_AUTH_MODE=token, but there is no {shown}", make)
        return note("token", "no token: a cluster started here lets in whoever reaches its ports", make)
    rights = stat.S_IMODE(path.stat().st_mode)
    if rights & 0o077:
        text = f"{shown} can be read by other users (mode {rights:04o})"
        return warning("token", text, f"chmod 600 {shown}")
    if not mode:
        text = (
            f"{shown} is there, but `ray job` and `ray status` don't send it while RAY_AUTH_MODE is not set"
        )
        return warning("token", text, set_mode)
    return ok("token", f"RAY_AUTH_MODE=token, {shown} with mode {rights:04o}")
