"""From words on the command line to calls of the package, and from mistakes to one sentence."""

# Here, before anything is imported that could fail: jobs/*.py take the package from beside them, and may be started by
# a Python that has nothing else. No newer syntax than that Python's.
import importlib.util
import sys

_missing = [name for name in ("numpy", "PIL", "torch", "ray") if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 10) or _missing:
    _why = f"has no {', '.join(_missing)}" if _missing else "is older than 3.10"
    _how = "start this with uv run, or activate the environment that Crayon is installed in"
    sys.stderr.write(f"error: {sys.executable or 'this Python'} {_why}; {_how}.\n")
    sys.exit(2)
