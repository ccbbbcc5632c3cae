"""Classifies images: small photographs, 32x32 RGB, unless other data is named."""

from __future__ import annotations

from crayon.config.settings import AugmentConfig, DataConfig, OptimConfig
from crayon.tasks.classification.settings import (
    ClassificationConfig,
    ClassificationExperiment,
    ClassifierConfig,
)
from crayon.tasks.jobs import Job

job = Job(
    name="cifar10",
    about="Classifies images: small photographs, 32x32 RGB, unless other data is named.",
    images=46_000,
    scales_to=2,
    presets={
        "quick": ClassificationExperiment(
            epochs=14,
            lr=3e-3,
            global_batch_size=256,
            data=DataConfig(source="cifar10", image_size=32, channels=3),
            augment=AugmentConfig(flip=True, shift=2),
            optim=OptimConfig(schedule="linear", warmup=0.05, weight_decay=0.05, ema_images=5_000),
            model=ClassifierConfig(width=32, growth=4, dropout=0.1),
            task=ClassificationConfig(label_smoothing=0.1, tta=True),
        ),
        "instant": {
            "epochs": 1,
            "lr": 8e-3,
            "beta1": 0.8,
            "global_batch_size": 128,
            "augment.shift": 0,
            "optim.beta2": 0.98,
            "optim.warmup": 0.2,
            "optim.ema_images": 0.0,
            "model.width": 16,
            "task.label_smoothing": 0.0,
        },
        "full": {
            "epochs": 16,
            "lr": 4e-3,
            "beta1": 0.85,
            "global_batch_size": 512,
            "model.width": 64,
            "model.activation": "gelu",
            "model.dropout": 0.0,
            "optim.warmup": 0.2,
            "optim.weight_decay": 1.0,
            "optim.bias_lr_factor": 8.0,
            "optim.ema_images": 0.0,
            "task.label_smoothing": 0.2,
            "eval.batch_size": 1000,
        },
    },
)
