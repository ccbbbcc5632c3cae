"""Other systems: what macOS and Windows don't have is hidden from a process that then trains."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
from helpers import flags, python, rows, tiny

import crayon

HIDDEN = """
import builtins, ctypes, importlib.abc, io, os, pathlib, signal, sys
import multiprocessing, psutil, socket, subprocess, tempfile, threading, torch  # these know their systems
import matplotlib.font_manager, numpy, PIL.Image, rich.console, safetensors.torch, filelock

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for name in ("getuid", "geteuid", "getgid", "fork", "setsid", "killpg", "getpgid", "sched_getaffinity", "O_DIRECTORY",
             "sched_setaffinity", "O_NOFOLLOW", "uname", "getloadavg", "chown", "mkfifo", "posix_spawn"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "pthread_sigmask", "SIGQUIT", "SIGUSR1"):
    if hasattr(signal, name):
        delattr(signal, name)
really = io.open

def opened(file, *words, **more):
    ours = not sys._getframe(1).f_globals["__name__"].startswith("psutil")  # which has other ways on other systems
    if ours and isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
    return really(file, *words, **more)

builtins.open = io.open = opened
real_os_open = os.open

def os_open(path, flags, *words, **more):
    if os.path.isdir(path):  # as on Windows
        raise PermissionError(13, "Permission denied", path)
    return real_os_open(path, flags, *words, **more)

os.open = os_open

really_cdll = ctypes.CDLL

class Libraries(really_cdll):
    def __init__(self, name, *words, **more):
        if name is None:  # the C library of this process
            raise TypeError("no such library")
        super().__init__(name, *words, **more)

ctypes.CDLL = Libraries
sys.platform = {platform!r}
"""


STOP = """
from crayon.training import loop
end_epoch = loop.Trainer.end_epoch

def interrupted(self, *words):
    signal.raise_signal(signal.SIGINT)
    return end_epoch(self, *words)

loop.Trainer.end_epoch = interrupted
"""
"""Ctrl-C at the end of the first epoch."""


@pytest.mark.parametrize("platform", ["win32", pytest.param("darwin", marks=pytest.mark.faults)])
def test_without_ray_all_is_imported_and_a_run_is_trained_stopped_and_resumed(platform, tmp_path):
    """Ray itself is for Linux and macOS; what needs it is imported where it is used."""
    names = [m.name for m in pkgutil.walk_packages(crayon.__path__, "crayon.") if "__main__" not in m.name]
    launch = [
        f"crayon.launch.{name}" for name in ("workers", "train_function", "fill", "backends", "channel")
    ]
    apart = (*launch, "crayon.fast.ray_train", "crayon.tuning.", "crayon.use.serve.", "crayon.ops.doctor.")
    wanted = [name for name in names if not name.startswith(apart)]
    assert len(wanted) > 60
    imports = f"import importlib\nfor name in {wanted!r}: importlib.import_module(name)\n"
    words = flags(tiny("mnist", storage=str(tmp_path), name="r"))
    train = f"from crayon.cli import main as cli\ncli.main('mnist', {words!r})"
    for before, code in ((STOP, 130), (imports, 0)):
        process = python(HIDDEN.replace("{platform!r}", repr(platform)) + before + train)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == code, out + errors
    assert "Going on from the checkpoint" in out and "Traceback" not in errors
    assert [row["epoch"] for row in rows(tmp_path / "r")] == [1, 2, 3]
    assert (tmp_path / "r" / "report.html").exists()
    assert not list(Path(tmp_path).rglob(".tmp-*"))
