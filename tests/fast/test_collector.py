"""Python's collector of garbage in our processes and in others'."""

from __future__ import annotations

import subprocess
import sys

COLLECTIONS = "import gc; look = lambda: sum(s['collections'] for s in gc.get_stats()); "


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


RELAX = "from crayon.fast import garbage; garbage.relax()\n"


def test_a_command_looks_for_garbage_a_tenth_as_often_while_it_loads_torch():
    load = f"{COLLECTIONS} before = look(); import torch; print(look() - before)"
    assert int(printed(RELAX + load)) < int(printed(load)) / 10


def test_commands_relax_and_a_program_that_imports_the_package_keeps_its_thresholds():
    thresholds = "import gc; print(gc.get_threshold()[0])"
    imported = printed(f"import crayon.cli.main, crayon.training.worker, crayon.launch.workers; {thresholds}")
    assert int(imported) == int(printed(thresholds))
    command = (
        "import atexit, gc; "
        "from crayon.cli import main as cli; atexit.register(lambda: print(gc.get_threshold()[0])); "
        "cli.main(None, ['--version'])"
    )
    assert int(printed(command).split()[-1]) > int(imported)


def test_garbage_that_refers_to_itself_is_still_found_and_what_is_registered_later_runs_at_exit():
    code = (
        "import atexit, gc, weakref\n"
        "atexit.register(print, 'done')\n"
        "class Node: pass\n"
        "node = Node(); node.itself = node; gone = weakref.ref(node); del node\n"
        "kept = [[] for _ in range(60_000)]\n"
        "print(gone() is None)"
    )
    assert printed(RELAX + code).split() == ["True", "done"]
