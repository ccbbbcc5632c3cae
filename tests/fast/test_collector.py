"""Python's collector of garbage in our processes and in others'."""

from __future__ import annotations

import subprocess
import sys

COLLECTIONS = "import gc; look = lambda: sum(s['collections'] for s in gc.get_stats()); "


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_command_looks_for_garbage_a_tenth_as_often_while_it_loads_torch():
    load = "before = look(); import torch; print(look() - before)"
    relaxed = printed(
        f"{COLLECTIONS} from crayon.fast import garbage as collector; collector.relax(); {load}"
    )
    assert int(relaxed) < int(printed(COLLECTIONS + load)) / 10


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


def test_garbage_that_refers_to_itself_is_still_found():
    code = (
        "import gc, weakref; from crayon.fast import garbage as collector; collector.relax()\n"
        "class Node: pass\n"
        "node = Node(); node.itself = node; gone = weakref.ref(node); del node\n"
        "kept = [[] for _ in range(60_000)]\n"
        "print(gone() is None)"
    )
    assert printed(code).strip() == "True"


def test_what_is_registered_later_still_runs_at_exit(tmp_path):
    path = tmp_path / "said"
    printed(
        "import atexit, pathlib; from crayon.fast import garbage as collector; collector.relax(); "
        f"atexit.register(pathlib.Path({str(path)!r}).write_text, 'done')"
    )
    assert path.read_text() == "done"
