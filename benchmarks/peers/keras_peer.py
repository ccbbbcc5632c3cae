"""Keras: the small network of its usual tutorials, or ours (--own-network), trained by `fit` from arrays in memory.

The tutorials: keras.io's "Simple MNIST convnet" (batch 128) and TensorFlow's "Convolutional Neural Network (CNN)" for
CIFAR-10 (batch 32), both with Adam and without augmentation. The arrays are in a .npz file, as keras.datasets has them;
nothing of torch or Crayon is imported here.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("job", choices=["mnist", "cifar10"])
parser.add_argument("--told", required=True)
parser.add_argument(
    "--arrays", required=True, help=".npz with x_train, y_train, x_val, y_val: uint8 NHWC, labels"
)
parser.add_argument("--epochs", type=int, default=100_000)
parser.add_argument("--validate", action="store_true")
parser.add_argument("--own-network", default="", help="width,growth,dropout,stride: our classifier")
parser.add_argument("--batch", type=int, default=0)


def tutorial(job: str, shape: tuple[int, ...], classes: int):
    from keras import Input, Sequential, layers

    if job == "mnist":
        body = [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
        ]
    else:
        body = [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
        ]
    return Sequential([Input(shape), *body, layers.Dense(classes)])


def own(shape: tuple[int, ...], classes: int, width: int, growth: int, dropout: float, stride: int):
    """crayon.tasks.classification.network with two convolutions a stage, layer by layer."""
    import numpy as np
    from keras import Input, Model, layers, ops

    haar = np.array([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2
    colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) if shape[-1] == 3 else np.eye(1)
    colour = colour / np.linalg.norm(colour, axis=1, keepdims=True)
    basis = np.einsum("pc,qhw->hwcpq", colour, haar).reshape(2, 2, shape[-1], -1)
    images = Input(shape)
    stem = layers.Conv2D(basis.shape[-1], 2, strides=stride, use_bias=False, trainable=False)
    x = layers.BatchNormalization(center=False, scale=False)(stem(images))
    stem.set_weights([basis.astype("float32")])
    x = ops.relu(ops.concatenate([x, -x], -1))
    side, stages = (shape[0] - 2) // stride + 1, 0
    while not stages or side >= 6:
        channels = width * (growth if stages else 1)
        x = layers.MaxPooling2D()(layers.Conv2D(channels, 3, padding="same", use_bias=False)(x))
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        side, stages = side // 2, stages + 1
    x = layers.Dropout(dropout)(layers.GlobalMaxPooling2D()(x))
    return Model(images, layers.Dense(classes)(x))


def main() -> None:
    known = parser.parse_args()
    import numpy as np

    with np.load(known.arrays) as file:
        x, y, x_val, y_val = (file[name] for name in ("x_train", "y_train", "x_val", "y_val"))
    x, x_val = x.astype("float32") / 255, x_val.astype("float32") / 255

    import keras

    from suite.tell import Teller

    tell, batch = Teller(known.told), known.batch or {"mnist": 128, "cifar10": 32}[known.job]
    classes = int(y.max()) + 1
    if known.own_network:
        width, growth, dropout, stride = (float(part) for part in known.own_network.split(","))
        model = own(x.shape[1:], classes, int(width), int(growth), dropout, int(stride))
    else:
        model = tutorial(known.job, x.shape[1:], classes)

    class Told(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, number, logs=None):
            self.seen += batch
            tell(self.seen)

        def on_epoch_end(self, epoch, logs=None):
            if known.validate:
                tell.say(epoch=epoch + 1, accuracy=float(logs["val_accuracy"]), at=time.time())

    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x,
        y,
        batch_size=batch,
        epochs=known.epochs,
        verbose=2,
        validation_data=(x_val, y_val) if known.validate else None,
        callbacks=[Told()],
    )


if __name__ == "__main__":
    main()
