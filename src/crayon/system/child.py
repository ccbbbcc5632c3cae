"""Python processes of our own: they find the modules that this one finds, and none of the working directory's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# `python -m` looks in the working directory before Python's own library, where a types.py of the user's would be taken
# for it; its -P, which doesn't, came with Python 3.11.
_RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); del sys.argv[0]; import runpy; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """What runs `module` as a program."""
    return [sys.executable, "-c", _RUN, module, *arguments]


def start(
    module: str, *arguments: str, env: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.Popen[Any]:
    """Run `module` as a program; `options` as Popen takes them. Raises OSError."""
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command(module, *arguments), env={**env, **paths}, **options)
