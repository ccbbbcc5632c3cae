"""Compresses images to a few numbers and back: digits, unless other data is named."""

from __future__ import annotations

from crayon.config.settings import DataConfig, OptimConfig
from crayon.tasks.jobs import Job
from crayon.tasks.reconstruction.settings import (
    AutoencoderConfig,
    ReconstructionConfig,
    ReconstructionExperiment,
)

job = Job(
    name="autoencoder",
    about="Compresses images to a few numbers and back: digits, unless other data is named.",
    images=55_200,
    scales_to=4,
    presets={
        "quick": ReconstructionExperiment(
            epochs=8,
            lr=3e-3,
            global_batch_size=256,
            data=DataConfig(source="mnist", image_size=28, channels=1),
            optim=OptimConfig(schedule="linear"),
            model=AutoencoderConfig(latent_dim=32, width=32, depth=1),
            task=ReconstructionConfig(latent_noise=0.1),
        ),
        "instant": {"epochs": 1, "global_batch_size": 128},
        "full": {
            "epochs": 60,
            "lr": 2e-3,
            "model.width": 64,
            "model.depth": 2,
            "optim.ema_images": 50_000.0,
            "eval.batch_size": 1000,
        },
    },
)
