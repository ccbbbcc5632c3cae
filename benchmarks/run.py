#!/usr/bin/env python
"""Us and others, side by side: speed, start, accuracy against time, memory, scaling.

    uv run --extra bench benchmarks/run.py                               # all, on data that is made on the spot
    uv run --extra bench benchmarks/run.py steady memory --repetitions 5 --data.root DATA
    uv run benchmarks/run.py --list

What was measured is kept in benchmarks/results/NAME.json: a run that was stopped goes on, and a larger --repetitions
adds to what is there. benchmarks/RESULTS.md has the tables. Lightning and Keras need the extra `bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from suite import table  # noqa: E402
from suite.harness import Benchmark, Figures, missing, values_of  # noqa: E402
from suite.processes import Failed  # noqa: E402
from suite.settings import Missing, Settings, find  # noqa: E402
from suite.store import Store  # noqa: E402

NAMES = (
    "steady",
    "busy",
    "precision",
    "first_step",
    "accuracy",
    "gan_quality",
    "scaling",
    "memory",
    "validation",
    "stalls",
    "preparation",
    "growth",
    "gpu",
    "cost",
)
"""One module of `suite` each, in the order in which all of them run."""
VERSIONS = ("torch", "torchvision", "ray", "pytorch-lightning", "keras", "tensorflow-cpu", "pillow", "numpy")


def get(name: str) -> Benchmark:
    return importlib.import_module(f"suite.{name}").BENCHMARK


def environment() -> dict[str, Any]:
    """Versions and hardware, without loading any of the libraries."""
    from crayon.system.host import _cpu, memory, usable_cores

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "cpu": _cpu(),
        "cpu_cores": usable_cores(),
        "memory_gib": round(memory() / 2**30, 1),
        "gpus": gpus(),
    }


def version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def gpus() -> list[str]:
    """Names, as the driver's tool has them; none without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip().splitlines()


def run(benchmark: Benchmark, settings: Settings, repetitions: int, folder: Path, only: str = "") -> bool:
    """Measure what is missing of `benchmark`; whether all worked. only: how the names of the wanted cases begin."""
    store = Store(folder, benchmark.name, benchmark.title, settings, environment())
    every, good, begun = benchmark.cases(settings), True, time.time()
    for case in every:
        store.compares(case.name, case.ratios)
    cases = [case for case in every if case.name.startswith(only)]
    if not cases:
        raise Missing(
            f"No case of {benchmark.name} begins with {only!r}; there are {', '.join(case.name for case in every)}."
        )
    whole = repetitions * len(cases)
    say(f"{benchmark.name}: {benchmark.title}")
    for repetition in range(repetitions):
        for number, case in enumerate(cases):
            left = missing(case, repetition, store.parts(case.name, repetition))
            if not left:
                continue
            place = f"[{repetition * len(cases) + number + 1}/{whole}]"
            say(f"{place} {case.name}, repetition {repetition + 1} (after {time.time() - begun:,.0f} s)")
            case.before()
            for part in left:
                try:
                    arms = case.parts[part]()
                except Failed as failed:
                    good = False
                    say(f"    {part} failed: {failed}")
                    continue
                store.put(case.name, repetition, part, dict(arms))
                for arm, figures in arms.items():
                    say(f"    {arm:24s} {shown(figures)}")
            for ratio in case.ratios:
                values, sign = values_of(ratio, store.repetitions(case.name)[repetition : repetition + 1])
                if values:
                    say(f"    {ratio.name:40s} {sign}{table.number(values[0])}")
    return good


def shown(figures: Figures) -> str:
    return "  ".join(f"{name} {'-' if v is None else table.number(v)}" for name, v in figures.items())


def say(text: str) -> None:
    print(text, flush=True)


def section(name: str, folder: Path) -> str:
    """The results of one benchmark as Markdown; "" where there are none."""
    file = folder / f"{name}.json"
    if not file.exists():
        return ""
    content, benchmark = json.loads(file.read_text()), get(name)
    text = table.markdown(content, benchmark.notes)
    return f"{text}\n{benchmark.appendix()}".rstrip() + "\n"


def write_page(folder: Path, path: Path) -> None:
    """RESULTS.md anew from all results in `folder`."""
    path.write_text(table.page([text for name in NAMES if (text := section(name, folder))]))


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all but gpu by default"
    )
    parser.add_argument("--list", action="store_true", help="what there is, and how long it takes")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--only", default="", metavar="CASE", help="cases whose names begin like this, such as gan"
    )
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: tries the benchmark itself"
    )
    parser.add_argument(
        "--data.root", dest="root", help="folder with MNIST, cifar10-jpeg, faces or some of these"
    )
    parser.add_argument("--mnist", help="folder with MNIST/raw")
    parser.add_argument(
        "--cifar10", help="folder with train/<class> and test/<class>, or with cifar-10-batches-py"
    )
    parser.add_argument("--faces", help="folder of photographs")
    parser.add_argument("--device", choices=["auto", "cpu"], help="default: auto for gpu, cpu for all others")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON files")
    known = parser.parse_args(words)
    odd = [name for name in known.names if name not in NAMES]
    if odd:
        parser.error(f"there is no benchmark {odd[0]!r}; there are {', '.join(NAMES)}")
    if known.repetitions < 1:
        parser.error(f"--repetitions is {known.repetitions}; at least one is needed")
    return known


def main(words: list[str] | None = None) -> int:
    known = arguments(sys.argv[1:] if words is None else words)
    names = known.names or [name for name in NAMES if name != "gpu"]
    for name in NAMES:
        get(name)  # now, so that files that change in the hours to come don't matter
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that measured processes are ended, too
    good = True
    try:
        if known.list:
            for name in known.names or NAMES:
                benchmark = get(name)
                say(f"{name:12s} {benchmark.minutes:5.0f} min a repetition  {benchmark.title}")
            return 0
        folders = find(known.root, known.mnist, known.cifar10, known.faces)
        known.results.mkdir(parents=True, exist_ok=True)
        for name in names:
            device = known.device or ("auto" if name == "gpu" else "cpu")
            settings = Settings(**folders, quick=known.quick, device=device)
            good &= run(get(name), settings, known.repetitions, known.results, known.only)
            page = known.results / "RESULTS.md" if known.results != HERE / "results" else HERE / "RESULTS.md"
            write_page(known.results, page)
            say(f"\n{section(name, known.results)}\n{name}: also in {page}\n")
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os._exit(141)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, and the same command goes on.", file=sys.stderr)
        return 130
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
