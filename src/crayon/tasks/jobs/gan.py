"""Invents images from random seed vectors: faces, unless other data is named."""

from __future__ import annotations

from crayon.config.settings import DataConfig, EvalConfig, OptimConfig
from crayon.tasks.adversarial.settings import AdversarialExperiment
from crayon.tasks.jobs import Job

job = Job(
    name="gan",
    about="Invents images from random seed vectors: faces, unless other data is named.",
    images=11_040,
    presets={
        "quick": AdversarialExperiment(
            epochs=18,
            lr=1e-3,
            beta1=0.5,
            global_batch_size=32,
            data=DataConfig(source="faces", image_size=48, channels=3),
            optim=OptimConfig(schedule="constant", warmup=0.02, ema_images=5_000),
            eval=EvalConfig(every_epochs=2),
        ),
        "instant": {
            "epochs": 5,
            "data.image_size": 32,
            "eval.every_epochs": 1,
        },
        # From the quick preset and the literature; tried on a GPU for half of its epochs only (benchmarks/LOG.md).
        "full": {
            "epochs": 200,
            "lr": 5e-4,
            "global_batch_size": 128,
            "data.image_size": 64,
            "model.width": 64,
            "model.latent_dim": 128,
            "optim.ema_images": 50_000.0,
            "optim.schedule": "linear",
            "optim.final": 0.1,
            "eval.every_epochs": 10,
            "checkpoint.every_epochs": 10,
        },
    },
    space={"beta1": "0..0.9"},
)
