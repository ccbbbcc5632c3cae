"""What a trial costs as a sweep gets long: trials whose epochs are made up, through the parts that Ray Tune calls."""

from __future__ import annotations

import contextlib
import io
import math
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS = 6
IMAGES = 3_000


def many(trials: int, flags: list[str]) -> None:
    """Prints, in blocks of a tenth of the trials, the CPU time per trial and this process's memory; then the report's
    time and size. Every trial is suggested, entered, compared after each epoch, shown and ended as in a sweep; it isn't
    trained, and there are no Ray processes."""
    from crayon.cli.flags import parse
    from crayon.config.names import identity
    from crayon.tasks import jobs
    from crayon.tuning.records import Plan, SweepRecord
    from crayon.tuning.settings import SweepConfig
    from crayon.tuning.slots import Slots
    from crayon.tuning.space import build
    from crayon.tuning.state import SweepState
    from crayon.tuning.study import Study
    from crayon.tuning.terminal import SweepDisplay
    from crayon.tuning.trials import StudySearcher, SweepStopper

    config = parse("mnist", ["--epochs", str(EPOCHS), "--data.source", "digits", *flags], "mnist")
    config, space = build(config, jobs.space(config), {})
    sweep = SweepConfig(trials=trials)
    about: dict[str, Any] = {"metric": "val/accuracy", "direction": "max", "objective": "quality"}
    plan = Plan(settings=identity(config), space=space, **about, sampler="tpe", early_stopping=True, seed=0)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        study = Study(f"sqlite:///{folder}/study.db", "s", plan)
        ended.callback(study.close)
        state = SweepState(config, sweep, study, Slots(cpus=1, gpus=0, count=1), print, None)
        searcher, stopper = StudySearcher(state), SweepStopper(state)

        display = SweepDisplay(io.StringIO())

        def record() -> SweepRecord:
            return SweepRecord(
                name="s", job="mnist", plan=plan, trials=study.records(), planned=trials, beside=()
            )

        print("trials   ms/trial   of them suggesting   MiB   (milliseconds of CPU time)")
        block, suggesting, begun = max(1, trials // 10), 0.0, time.process_time()
        for number in range(trials):
            before = time.process_time()
            asked = searcher.suggest(str(number))
            suggesting += time.process_time() - before
            run(asked["params"], str(number), stopper, searcher)
            display.show(record())
            if state.error:
                raise state.error
            if (number + 1) % block == 0:
                took, drew = time.process_time() - begun, suggesting
                print(
                    f"{number + 1:6d}{1e3 * took / block:11.1f}{1e3 * drew / block:21.1f}{memory():6.0f}",
                    flush=True,
                )
                suggesting, begun = 0.0, time.process_time()
        report(Path(folder), record())


def run(params: dict[str, Any], name: str, stopper: Any, searcher: Any) -> None:
    """One trial's epochs, its curve a made-up function of its parameters."""
    luck = random.Random(name)
    peak = 0.98 - 0.02 * abs(math.log(params["lr"] / 4e-3)) - 0.2 * (params["beta1"] - 0.85) ** 2
    result: dict[str, Any] = {}
    for epoch in range(1, params["epochs"] + 1):
        value = peak - 0.3 * math.exp(-1.5 * epoch) + luck.gauss(0, 0.001)
        row = {"epoch": epoch, "images": epoch * IMAGES, "train_seconds": float(epoch), "val/accuracy": value}
        result = {"row": row, "step_seconds": 1.0}
        if stopper(name, result):
            break
    searcher.on_trial_complete(name, result)


def report(folder: Path, record: Any) -> None:
    from crayon.report.style import png
    from crayon.system.runfolder import RunFolder
    from crayon.tuning import page, plots
    from crayon.tuning.effects import with_effects

    run_folder = RunFolder.at(folder)
    begun = time.perf_counter()
    record = with_effects(record)
    print(f"effects {time.perf_counter() - begun:.1f} s")
    begun = time.perf_counter()
    for name, picture in plots.all_pictures(record).items():
        run_folder.write_bytes(f"pictures/{name}.png", png(picture))
    print(f"pictures {time.perf_counter() - begun:.1f} s")
    begun = time.perf_counter()
    path = page.write(folder, record, {})
    print(
        f"page {time.perf_counter() - begun:.1f} s, {path.stat().st_size / 1e6:.2f} MB; {memory():.0f} MiB at most"
    )
    print(f"study {(folder / 'study.db').stat().st_size / 1e6:.2f} MB")


def memory() -> float:
    """The most that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
