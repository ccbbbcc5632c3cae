#!/usr/bin/env python
"""A network of one's own: torchvision's, begun with weights from ImageNet, on a folder of photographs.

python examples/finetune.py --data.root ~/flowers        # flowers/train/<class>/*.jpg and flowers/test/<class>/*.jpg
python examples/finetune.py --data.root ~/flowers --model.name convnext_tiny --model.weights ~/convnext.pth
python examples/finetune.py tune --data.root ~/flowers --space.model.lr-factor 0.01..1:log
"""

import crayon

job = crayon.Job(
    name="finetune",
    about="A pretrained network, made to tell the classes of a folder apart.",
    network=crayon.PretrainedClassifier,
    presets={
        "quick": crayon.ClassificationExperiment(
            epochs=5,
            lr=1e-3,
            global_batch_size=32,
            data=crayon.DataConfig(source="folder", image_size=96, channels=3),
            augment=crayon.AugmentConfig(flip=True, shift=8, zoom=0.1),
            optim=crayon.OptimConfig(schedule="cosine", weight_decay=0.05),
            model=crayon.Pretrained(name="resnet18"),
            task=crayon.ClassificationConfig(label_smoothing=0.1, tta=True),
        ),
        # The last layer alone: a few seconds an epoch, and hard to beat with a dozen images of each class.
        "head": {"model.freeze": True, "lr": 3e-3, "epochs": 10},
        "full": {"data.image_size": 224, "epochs": 30, "global_batch_size": 64},
    },
    space={"model.lr_factor": "0.01..1:log", "beta1": "0.9"},
)

if __name__ == "__main__":
    crayon.main(job)
