"""Classifies images: handwritten digits, 28x28 grey, unless other data is named."""

from __future__ import annotations

from crayon.config.settings import AugmentConfig, DataConfig, OptimConfig
from crayon.tasks.classification.settings import (
    ClassificationConfig,
    ClassificationExperiment,
    ClassifierConfig,
)
from crayon.tasks.jobs import Job

job = Job(
    name="mnist",
    about="Classifies images: handwritten digits, 28x28 grey, unless other data is named.",
    images=55_200,
    scales_to=4,
    presets={
        "quick": ClassificationExperiment(
            epochs=8,
            lr=4e-3,
            global_batch_size=256,
            data=DataConfig(source="mnist", image_size=28, channels=1),
            augment=AugmentConfig(shift=2, rotate=10, zoom=0.1),
            optim=OptimConfig(schedule="linear", weight_decay=0.05, ema_images=5_000),
            model=ClassifierConfig(width=16, growth=4, dropout=0.1),
            task=ClassificationConfig(label_smoothing=0.05),
        ),
        # 200 steps on as many images as that takes: a third of the training set.
        "instant": {
            "epochs": 1,
            "lr": 0.012,
            "beta1": 0.8,
            "global_batch_size": 100,
            "data.size": 20_000,
            "augment.shift": 0,
            "augment.rotate": 0.0,
            "augment.zoom": 0.0,
            "optim.beta2": 0.98,
            "optim.ema_images": 0.0,
            "model.stem_stride": 2,
            "task.label_smoothing": 0.0,
        },
        "full": {
            "epochs": 40,
            "model.width": 32,
            "model.depth": 3,
            "model.dropout": 0.2,
            "optim.ema_images": 50_000.0,
            "eval.batch_size": 1000,
        },
    },
)
