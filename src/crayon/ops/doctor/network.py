"""Ports, the dashboard and the token that keeps strangers out of a cluster."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from crayon.errors import first_line
from crayon.ops.doctor.findings import Finding, count
from crayon.ops.doctor.machine import node_name

HEAD_PORTS = {
    6379: ("the cluster's own", "--port"),
    8265: ("the dashboard's", "--dashboard-port"),
    10001: ("Ray Client's", "--ray-client-server-port"),
}
"""What `ray start --head` takes: whose port, and the flag that chooses another."""
ANSWER_SECONDS = 5.0


def free_ports(ports: Mapping[int, tuple[str, str]] = HEAD_PORTS) -> Finding:
    """Whether a cluster could be started here. Nothing is sent anywhere."""
    taken = {port: _holder(port) for port in ports if not _is_free(port)}
    if not taken:
        return Finding("ports", "ok", f"{', '.join(map(str, ports))} are free for ray start --head")
    texts = [f"{port} ({ports[port][0]}) is taken by {who}" for port, who in taken.items()]
    flags = " ".join(f"{ports[port][1]}=..." for port in taken)
    return Finding("ports", "warning", "; ".join(texts), f"end it, or ray start --head {flags}")


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                # As a server does it, so that a connection that has just been closed doesn't count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
                probe.listen(1)
        except OSError as error:
            if family == socket.AF_INET or error.errno == 98:
                return False
    return True


def _holder(port: int) -> str:
    import psutil

    try:
        for c in psutil.net_connections("tcp"):
            if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid:
                return f"{psutil.Process(c.pid).name()} (process {c.pid})"
    except psutil.Error:
        pass
    return "another process"


def exposed(here: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """What of Ray other machines could reach, here and on nodes elsewhere, and whether it asks for the token."""
    places = {here["host"]: ("ports here", here["listeners"])}
    for node in nodes:
        facts = node.get("facts") or {}
        if "listeners" in facts:
            places.setdefault(facts["host"], (f"ports {node_name(node)}", facts["listeners"]))
    for name, listeners in places.values():
        outside = [entry for entry in listeners if not is_loopback(entry[1])]
        if not outside:
            text = "nothing of Ray listens" + (" beyond loopback" if listeners else "")
            if nodes or listeners:
                yield Finding(name, "ok", text)
            continue
        # Where several clusters share a machine, only those without a token are told.
        outside = [entry for entry in outside if not entry[3]] or outside
        kinds = {what: sorted({e[2] for e in outside if e[0] == what}) for what, *_ in outside}
        text = ", ".join(f"{what} {_few(ports)}" for what, ports in kinds.items())
        if all(token for *_, token in outside):
            yield Finding(name, "note", f"{text} listen beyond loopback and ask for the token")
        else:
            yield Finding(
                name,
                "warning",
                f"{text} listen beyond loopback without a token: whoever reaches them can run code",
                "end Ray, export RAY_AUTH_MODE=token on every machine, start it again; and put a firewall before it",
            )


def _few(ports: list[int]) -> str:
    return ", ".join(map(str, ports)) if len(ports) <= 3 else count(len(ports), "port")


def is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address == "localhost"
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def token() -> Finding:
    """Whether clusters are started and reached with a token, and who could read it. It is not opened."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    chosen = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(chosen) if chosen else Path.home() / ".ray" / "auth_token"
    shown = chosen or "~/.ray/auth_token"
    inline = bool(os.environ.get("RAY_AUTH_TOKEN"))
    make = f"export RAY_AUTH_MODE=token; ray get-auth-token --generate > /dev/null; chmod 600 {shown}"
    if mode not in ("", "token"):
        off = mode == "disabled"
        return Finding(
            "token",
            "warning" if off else "note",
            f"RAY_AUTH_MODE={mode}",
            "export RAY_AUTH_MODE=token" if off else "",
        )
    if inline:
        text = "the token is in RAY_AUTH_TOKEN, where every process started from here can read it"
        return Finding(
            "token", "note" if mode else "warning", text, "" if mode else "export RAY_AUTH_MODE=token"
        )
    if not path.is_file() or not path.stat().st_size:
        if mode:
            return Finding("token", "error", f"RAY_AUTH_MODE=token, but there is no {shown}", make)
        return Finding(
            "token",
            "note",
            f"no token: a cluster started here lets in whoever reaches its ports; to have one: {make}",
        )
    rights = stat.S_IMODE(path.stat().st_mode)
    if rights & 0o077:
        return Finding(
            "token",
            "warning",
            f"{shown} can be read by other users (mode {rights:04o})",
            f"chmod 600 {shown}",
        )
    if not mode:
        return Finding(
            "token",
            "warning",
            f"{shown} is there, but `ray job` and `ray status` don't send it while RAY_AUTH_MODE is not set",
            "export RAY_AUTH_MODE=token",
        )
    return Finding("token", "ok", f"RAY_AUTH_MODE=token, {shown} with mode {rights:04o}")


def dashboard(address: str) -> Iterator[Finding]:
    """Where the joined cluster's dashboard listens ("" = no cluster), and what RAY_API_SERVER_ADDRESS leads to."""
    if address:
        host = address.rpartition(":")[0]
        if is_loopback(host):
            yield Finding("dashboard", "ok", f"{address}, on the head's loopback")
        else:
            yield Finding(
                "dashboard",
                "warning",
                f"{address}, which other machines can reach; jobs are submitted through it",
                "ray start --head --dashboard-host=127.0.0.1, and reach it with `ray dashboard` or ssh -L",
            )
    server = os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if server:
        yield _api_server(server)


def _api_server(server: str) -> Finding:
    name, url = "job server", urlparse(server if "://" in server else f"http://{server}")
    shown = f"RAY_API_SERVER_ADDRESS={url.scheme}://{url.netloc.rpartition('@')[2]}"
    asks = False
    if url.scheme not in ("http", "https"):
        return Finding(
            name,
            "error",
            f"{shown} is no http address",
            "export RAY_API_SERVER_ADDRESS=http://localhost:8265",
        )
    try:
        urllib.request.urlopen(f"{url.geturl().rstrip('/')}/api/version", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        asks = error.code in (401, 403)
        if not asks:
            return Finding(
                name, "error", f"{shown} answers, but not as Ray does ({error.code})", "another address"
            )
    except (OSError, ValueError) as error:
        reason = first_line(getattr(error, "reason", None) or error)
        return Finding(
            name,
            "error",
            f"nothing answers at {shown} ({reason})",
            "ray dashboard CLUSTER.yaml, or unset the variable",
        )
    text = f"{shown} answers" + (" and asks for the token" if asks else "; it asks for no token")
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        return Finding(
            name,
            "warning",
            f"{text}; what is sent there is not encrypted",
            "a tunnel: ray dashboard CLUSTER.yaml",
        )
    return Finding(name, "ok" if asks else "note", text)
