"""Several hosts on this machine, each with its own address, sshd, home, /tmp, /dev/shm and processes.

They are Linux namespaces around a bridge that lies in a namespace of its own: nothing is added to this machine's
network or mounts, and the kernel takes it all away when the test's process ends, whichever way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "sshd", "ssh", "ssh-keygen", "rsync")
"""The commands needed; Debian's packages of them are iproute2, util-linux, openssh-server, openssh-client, rsync."""

SPACES = ["--net", "--mount", "--pid", "--uts", "--ipc"]
NAMESPACES, ENTER = ["unshare", *SPACES, "--fork"], ["nsenter", *SPACES]
ALONE = ["setpriv", "--pdeathsig", "KILL"]
"""Before a command: it is killed when this process is, and with `unshare --kill-child` all of its namespaces."""

# The host's first process. What the tests need of the old /tmp is bound into the new one while it is still the working
# directory. Debian, too, gives a host's own name an address of the loopback.
BOOT = """
set -e
hostname "$NAME"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind "$ETC/hosts" /etc/hosts
mount --bind "$ETC/passwd" /etc/passwd
cd /tmp
mount --bind "$TEMPORARY" /tmp
for kept in "$@"; do
    mkdir -p "/tmp/$kept"
    mount --no-canonicalize --bind "./$kept" "/tmp/$kept"
done
cd /
exec "$SSHD" -D -f /dev/null -E "$ETC/sshd.log" -o HostKey="$KEYS/host" -o AuthorizedKeysFile="$KEYS/user.pub" \
    -o StrictModes=no -o UsePAM=no -o PidFile=none -o PermitRootLogin=prohibit-password
"""


def missing() -> str | None:
    """What keeps this machine from having hosts, in a sentence; None if nothing does."""
    if sys.platform != "linux":
        return "hosts are made of Linux namespaces; this is no Linux"
    if os.geteuid():
        return "hosts are made of namespaces, which needs root"
    for tool in TOOLS:
        if not _which(tool):
            return f"hosts need the command {tool}"
    tried = subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "x", "/run"], capture_output=True, text=True)
    return f"this root may not make namespaces ({tried.stderr.strip()})" if tried.returncode else None


class Host:
    """One host; `hosts` makes them."""

    def __init__(self, number: int, folder: Path, switch: int):
        self.name, self._number = f"host{number}", number
        self.address = f"10.77.0.{number + 1}"
        self.home = folder / self.name
        """Its home, to look into from here too."""
        self.tmp = folder / f"tmp-{self.name}"
        """Its /tmp."""
        self._keys, self._etc, self._switch = folder / "keys", folder / f"etc-{self.name}", switch
        self._port = f"port{number}"
        self._boot: subprocess.Popen[str] | None = None
        self._init = 0
        self._commands: list[subprocess.Popen[str]] = []
        for path in (self._etc, self.tmp, self.home / ".ssh"):
            path.mkdir(mode=0o700, parents=True)
        shutil.copy(self._keys / "user", self.home / ".ssh" / "id_ed25519")
        (self._etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        users = Path("/etc/passwd").read_text().splitlines()
        users = [line for line in users if not line.startswith("root:")]
        (self._etc / "passwd").write_text("\n".join([f"root:x:0:0::{self.home}:/bin/bash", *users, ""]))
        (self.home / ".profile").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")

    def start(self) -> None:
        """Switch it on: again after `kill`, with the same home and address."""
        log = self._etc / "sshd.log"
        log.unlink(missing_ok=True)
        own = {"NAME": self.name, "ETC": str(self._etc), "KEYS": str(self._keys), "TEMPORARY": str(self.tmp)}
        boot = ["--kill-child=KILL", "--mount-proc", "sh", "-c", BOOT, "sh", *_of_tmp(self._keys.parent)]
        self._boot = subprocess.Popen(
            [*ALONE, *NAMESPACES, *boot],
            env=os.environ | own | {"SSHD": str(_which("sshd"))},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._wait(lambda: bool(psutil.Process(self._boot.pid).children()))
        self._init = psutil.Process(self._boot.pid).children()[0].pid
        self._wait(lambda: log.exists() and "listening" in log.read_text())
        here, switch = (f"nsenter --target {pid} --net ip" for pid in (self._init, self._switch))
        # The same after `kill`, as the others' ARP tables have it.
        card = f"02:00:00:00:00:{self._number:02x}"
        for command in (
            f"{switch} link add {self._port} type veth peer name eth0 address {card} netns {self._init}",
            f"{switch} link set {self._port} master bridge up",
            f"{here} link set lo up",
            f"{here} addr add {self.address}/24 dev eth0",
            f"{here} link set eth0 up",
            f"{here} route add default via 10.77.0.1",
        ):
            _call(command)

    def _wait(self, ready: Any, seconds: float = 10) -> None:
        assert self._boot
        until = time.monotonic() + seconds
        while not ready():
            if self._boot.poll() is not None or time.monotonic() > until:
                self._boot.kill()
                raise RuntimeError(f"{self.name} doesn't start: {self._boot.communicate()[1].strip()}")
            time.sleep(0.02)

    def popen(
        self,
        command: Sequence[str | Path],
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        **how: Any,
    ) -> subprocess.Popen[str]:
        """Start a command on this host, in an environment of the host's own and `env`."""
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = {"HOME": str(self.home), "USER": "root", "PATH": path}
        words = [f"{name}={value}" for name, value in (own | dict(env or {})).items()]
        process = subprocess.Popen(
            [*ENTER, f"--target={self._init}", "env", "-i", "-C", str(cwd), *words, *map(str, command)],
            **({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | how),
        )
        self._commands.append(process)
        return process

    def run(
        self, command: Sequence[str | Path], timeout: float = 60, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end; stderr is in its stdout. Raises TimeoutExpired."""
        with self.popen(command, **how) as process:
            try:
                out = process.communicate(timeout=timeout)[0]
            except BaseException:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, out)

    def processes(self) -> list[psutil.Process]:
        """All its processes but sshd's."""
        space, found = os.readlink(f"/proc/{self._init}/ns/pid"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                here = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                if here and process.status() != psutil.STATUS_ZOMBIE and process.name() != "sshd":
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pull its network cable."""
        _call(f"nsenter --target {self._switch} --net ip link set {self._port} down")

    def heal(self) -> None:
        _call(f"nsenter --target {self._switch} --net ip link set {self._port} up")

    def kill(self) -> None:
        """Switch it off at the mains: all its processes end, and nobody is told."""
        if self._boot:
            # Its first process, so that `unshare` above it waits until all the others have ended too.
            for process in [*psutil.Process(self._boot.pid).children(), self._boot]:
                process.kill()
                process.wait()
            self._boot.communicate()
            self._boot = None

    def remove(self) -> None:
        self.kill()
        for command in self._commands:
            command.kill()
            command.wait()
            for stream in (command.stdin, command.stdout):
                if stream:
                    stream.close()


@contextlib.contextmanager
def hosts(number: int, folder: Path) -> Iterator[list[Host]]:
    """So many hosts, whose homes lie in `folder`. Each reaches the others over ssh, as root, by its key.

    They see this machine's files, but for /tmp, where there are only `folder`, the project and its environment. Skips
    the test where hosts can't be made.
    """
    if reason := missing():
        pytest.skip(reason)
    keys = folder / "keys"
    keys.mkdir(mode=0o700, parents=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / key], check=True)
    machines: list[Host] = []
    switch = subprocess.Popen([*ALONE, "unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    try:
        inside = f"nsenter --target {switch.pid} --net ip"
        while os.readlink(f"/proc/{switch.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        _call(f"{inside} link add bridge type bridge")
        _call(f"{inside} addr add 10.77.0.1/24 dev bridge")
        _call(f"{inside} link set bridge up")
        for n in range(1, number + 1):
            machines.append(Host(n, folder, switch.pid))
            machines[-1].start()
        yield machines
    finally:
        for machine in machines:
            machine.remove()
        switch.kill()
        switch.wait()


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _call(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")


def _of_tmp(folder: Path) -> list[str]:
    """Of these, the ones that lie in /tmp, seen from there."""
    wanted = sorted({p.resolve() for p in (folder, ROOT, Path(sys.prefix), Path(sys.base_prefix))})
    inner = [p for p in wanted if p.is_relative_to("/tmp")]
    return [
        str(p.relative_to("/tmp")) for p in inner if not any(p != q and p.is_relative_to(q) for q in inner)
    ]
