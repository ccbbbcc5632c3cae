"""How a sweep searches. Loads nothing heavy, so that `tune --help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crayon.config.fields import setting

Sampler = Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"]
Pruner = Literal["asha", "median", "hyperband"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How a sweep searches, and when it ends."""

    trials: int = setting(20, low=1)
    """Trials in all, with those of earlier commands on the same sweep."""
    minutes: float | None = setting(None, above=0)
    """End after this much time, whatever is running."""
    target: float | None = None
    """End as soon as a trial's validation metric is this good."""
    finish: bool = False
    """Run no more trials: measure the best so far on the test split, which otherwise waits for the sweep's end."""
    objective: Literal["quality", "pareto", "pbt"] = "quality"
    """quality = the best model; pareto = the best models for each training time; pbt = the best schedule of settings
    that change while models train (population based training)."""
    population: int | None = setting(None, low=2)
    """With --objective pbt, how many models train side by side, --epochs each. None = 8."""
    round_epochs: int | None = setting(None, low=1)
    """With --objective pbt, after how many epochs the worst quarter of the models give way to changed copies of the
    best. None = about a sixth of --epochs."""
    sampler: Sampler = "tpe"
    """tpe (Bergstra et al. 2011), gp (Gaussian process), cmaes and nsga2 (evolution) learn from the trials so far;
    random doesn't; grid goes through all points of a space of lists and whole numbers."""
    patience: float | None = setting(None, above=0)
    """End once the trials after the best one have trained for as many epochs as this many runs of the preset. Those
    that were stopped early count for the epochs that they ran."""
    early_stopping: bool = True
    """Stop trials that fall behind after 1/9, 1/3 or 2/3 of their epochs (ASHA), but none before its learning rate's
    warm-up, 50 updates and a half-life of averaged weights are over; the preset is never stopped."""
    pruner: Pruner = "asha"
    """Who falls behind: asha = all but the best third; median = the worse half; hyperband = as asha, but two of three
    trials are compared later."""
    confirm: int = setting(0, low=0)
    """At the end, within --minutes, train the preset and the best three with so many other seeds, 5 for example, to
    their ends. The best is then a trial that is told apart from the preset: its 95 % interval of the paired
    differences on validation (t, Bonferroni for the three) is above 0. Where there is none, it is the preset. 0 = the
    best is the trial with the best value, which is partly luck."""
    concurrent: int | None = setting(None, low=1)
    """Trials at once. None = as many as the CPU cores or GPUs have room for."""
    gpus_per_trial: float = setting(1.0, above=0, high=1)
    """Share of a GPU for each trial of one worker; 0.25 = four trials on one GPU. Several GPUs for a trial: workers."""
    keep_trials: bool = False
    """Keep all that trials wrote, instead of each one's newest checkpoint and its best once it is over."""
    mps: bool = False
    """Run the kernels of trials that share a GPU at the same time (NVIDIA's Multi-Process Service), not in turns. Not
    tried on a GPU yet."""
    require: tuple[str, ...] = ()
    """What the settings of every trial must keep to, checked before it is trained; several stand side by side:
    "parameters<=500_000", "memory<=200MB" (of the tensors that a training step keeps) or "ms_per_image<=2" (one image
    on one core of this machine, or on its GPU). Settings that don't are told, drawn again and not counted."""
    try_: tuple[str, ...] = ()
    """Settings to run first, such as lr=3e-3,beta1=0.8, the others as in the preset; several stand side by side."""
    from_: str | None = None
    """Begin with what is known: the folder of another sweep or run of this job, or an Optuna study as URL#NAME. Its
    trials lead the search, one in four of them where data or settings differ, and are never chosen; settings of the
    best are run anew, after the preset."""
    study: str | None = None
    """Optuna storage URL. None = a SQLite file in the sweep's folder."""

    @property
    def at_once(self) -> int:
        """How many trials could run at once: any, or those of a round."""
        return self.population or self.trials
