"""Where images come from: downloads (from a server on loopback), built-in sets, what is refused."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import pixels

from crayon.config.settings import DataConfig
from crayon.data import cache_root, check, load
from crayon.data.procedural.faces import CLASSES, render
from crayon.data.procedural.shapes import render as render_shapes
from crayon.errors import BadInput
from crayon.report.events import Progress


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path/served` on loopback; counts what is asked for."""
    served = tmp_path / "served"
    served.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/", served, asked
        httpd.shutdown()
        thread.join()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def mnist_files(n=30) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        f"{stem}-{what}": idx(rng.integers(0, high, shape).astype(np.uint8))
        for stem in ("train", "t10k")
        for what, high, shape in (("images-idx3-ubyte", 256, (n, 28, 28)), ("labels-idx1-ubyte", 10, (n,)))
    }


@pytest.fixture
def mnist_mirror(server, monkeypatch):
    from torchvision.datasets import MNIST

    url, served, asked = server
    resources = []
    for name, content in mnist_files().items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [url])
    monkeypatch.setattr(MNIST, "resources", resources)
    return served, asked


MNIST_CONFIG = DataConfig(source="mnist", val_fraction=0.1)


def test_mnist_is_downloaded_once_verified_and_read(own_cache, mnist_mirror, capfd):
    events = []
    splits = load(MNIST_CONFIG, labels=True, emit=events.append)
    assert events == [Progress("downloading mnist", 0, 1), Progress("downloading mnist", 1, 1)]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (27, 3, 30)
    expected = np.frombuffer(mnist_files()["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(30, 1, 28, 28)
    assert np.array_equal(pixels(splits.test), expected)
    assert splits.test.labels.tolist() == list(mnist_files()["t10k-labels-idx1-ubyte"][8:])
    asked = len(mnist_mirror[1])
    load(MNIST_CONFIG, labels=True)
    assert len(mnist_mirror[1]) == asked
    assert capfd.readouterr().err == ""


def test_mnist_of_another_size_in_colour_and_fewer_images_of_which_the_same_are_held_out(
    own_cache, mnist_mirror
):
    config = DataConfig(source="mnist", image_size=32, channels=3, val_fraction=0.1)
    whole, fewer = (load(replace(config, size=size), labels=True) for size in (None, 7))
    assert whole.train.shape == fewer.test.shape == (3, 32, 32)
    assert (len(whole.train), len(fewer.train)) == (27, 7)
    assert np.array_equal(pixels(whole.val), pixels(fewer.val)) and len(fewer.val) == 3
    assert {image.numpy().tobytes() for image in pixels(fewer.train)} <= {
        image.numpy().tobytes() for image in pixels(whole.train)
    }


def test_a_damaged_download_is_refused_and_not_kept(own_cache, mnist_mirror):
    served, _ = mnist_mirror
    good = (served / "t10k-images-idx3-ubyte.gz").read_bytes()
    (served / "t10k-images-idx3-ubyte.gz").write_bytes(good[:-9] + b"x" * 9)
    with pytest.raises(BadInput, match="mnist could not be downloaded"):
        load(MNIST_CONFIG, labels=True)
    (served / "t10k-images-idx3-ubyte.gz").write_bytes(good)
    assert len(load(MNIST_CONFIG, labels=True).test) == 30


@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_a_failed_download_names_both_ways_out(own_cache, monkeypatch, source):
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # the discard port: nobody listens
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(BadInput, match=source) as caught:
        load(DataConfig(source=source, image_size=32, channels=3), labels=True)
    message = str(caught.value)
    assert "--data.root" in message and "--data.source digits, shapes or faces" in message
    assert "\n" not in message and not (cache_root() / "downloads" / source).exists()


@pytest.fixture
def cifar10(monkeypatch) -> dict[str, bytes]:
    """CIFAR-10's files with few images, by name; their sums are those that torchvision wants."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        made = rng.integers(0, 256, (10, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({"data": made, "labels": list(range(10))})
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n in files if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return files


def test_cifar10_is_downloaded_verified_and_cached(own_cache, server, cifar10, monkeypatch):
    from torchvision.datasets import CIFAR10

    url, served, _ = server
    with tarfile.open(served / "cifar.tar.gz", mode="w:gz") as tar:
        for name, content in cifar10.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "url", url + "cifar.tar.gz")
    packed = (served / "cifar.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())

    splits = load(DataConfig(source="cifar10", image_size=32, channels=3, val_fraction=0.0), labels=True)
    assert splits.train.classes == tuple("abcdefghij") and len(splits.train) == 50
    first = pickle.loads(cifar10["data_batch_1"])["data"][0].reshape(3, 32, 32)
    assert np.array_equal(pixels(splits.train)[0], first)
    root = cache_root() / "downloads" / "cifar10"
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    again = load(DataConfig(source="cifar10", image_size=32, channels=3), labels=True)
    assert again.train.storage.shape == splits.train.storage.shape
    # The pixels are cached as long as the files stay as they are; other ones are verified.
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"another")
    with pytest.raises(BadInput, match="incomplete or damaged"):
        load(DataConfig(source="cifar10", image_size=32, channels=3), labels=True)


@pytest.mark.parametrize("forged", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_pickle_in_place_of_one_file_of_cifar10(tmp_path, own_cache, cifar10, payload, forged):
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in (cifar10 | {forged: payload}).items():
        (folder / name).write_bytes(content)
    config = DataConfig(source="cifar10", root=str(tmp_path / "cifar"), image_size=32, channels=3)
    with pytest.raises(BadInput, match="incomplete or damaged"):
        load(config, labels=True)


def test_mnist_root_is_checked(tmp_path):
    config = DataConfig(source="mnist", root=str(tmp_path))
    with pytest.raises(BadInput, match="has no MNIST/raw/train-images-idx3-ubyte"):
        check(config, labels=True)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files().items():
        (raw / name).write_bytes(content)
    assert len(load(config, labels=True).test) == 30
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(30, 11, np.uint8)))
    with pytest.raises(BadInput, match="label 11, and its 10 classes are numbered 0 to 9"):
        load(config, labels=True)
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(BadInput, match="truncated"):
        load(config, labels=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digits", "root": "/x"}, "no meaning"),
        ({"source": "celeba"}, "no classes"),
        ({"channels": 2}, "channels"),
        ({"source": "faces", "image_size": 16}, "32 to 256"),
        ({"size": 1}, "--data.size"),
        ({"max_unreadable": 2.0}, "max-unreadable"),
    ],
)
def test_senseless_settings(changes, message):
    with pytest.raises(BadInput, match=message):
        check(DataConfig(**({"source": "digits"} | changes)), labels=True)


# Built-in sets


def test_digits_are_scans_in_ten_classes():
    splits = load(DataConfig(source="digits"), labels=True)
    assert len(splits.train) + len(splits.val) == 1500 and len(splits.test) == 297
    assert splits.train.shape == (1, 28, 28) and splits.train.labels.bincount().min() > 100
    # Real and readable: nearest class mean gets most of them right.
    means = torch.stack([pixels(splits.train)[splits.train.labels == k].float().mean(0) for k in range(10)])
    guess = torch.cdist(pixels(splits.test).float().flatten(1), means.flatten(1)).argmin(1)
    assert (guess == splits.test.labels).float().mean() > 0.8


@pytest.mark.parametrize(("source", "size", "channels"), [("faces", 32, 1), ("shapes", 24, 3)])
def test_procedural_sets_have_the_size_asked_for_and_disjoint_splits(source, size, channels):
    config = DataConfig(source=source, size=600, image_size=size, channels=channels, val_fraction=0.1)
    splits = load(config, labels=True)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (540, 60, 2000)
    assert splits.train.shape == (channels, size, size)
    everything = torch.cat([pixels(s).flatten(1) for s in splits[:3]])
    assert len(torch.unique(everything, dim=0)) == len(everything)
    first = pixels(splits.train)
    assert torch.equal(pixels(load(config, labels=False).train), first)


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("draw", [render, render_shapes])
def test_a_picture_depends_on_seed_and_index_only(draw, size):
    indices = torch.tensor([5, 0, 77, 1 << 40, 3, 900, 41])
    images, labels = draw(indices, size)
    alone = [draw(indices[i : i + 1], size) for i in range(len(indices))]
    assert torch.equal(images, torch.cat([image for image, _ in alone]))
    assert torch.equal(labels, torch.cat([label for _, label in alone]))
    company, _ = draw(torch.cat([torch.arange(30), indices]), size)
    assert torch.equal(company[30:], images)
    assert not torch.equal(draw(indices, size, seed=1)[0], images)


def test_faces_are_the_same_pictures_everywhere_in_45_modes_that_look_different():
    """Statistics rather than a hash: processors may round a pixel differently by one level."""
    images, labels = render(torch.arange(3000), 32)
    assert labels[:10].tolist() == [22, 9, 37, 10, 0, 3, 10, 10, 23, 28] and labels[:200].sum() == 4095
    assert images[:200].float().mean((0, 2, 3)).tolist() == pytest.approx([130.79, 112.09, 93.16], abs=0.2)
    assert images[:200].float().std().item() == pytest.approx(53.60, abs=0.2)
    assert len(CLASSES) == 45 and labels.bincount(minlength=45).min() > 2
    assert CLASSES[0] == "bald, no beard, no glasses" and CLASSES[44] == "curly hair, full beard, sunglasses"
    eyes = images[:, :, 12:17, 8:24].float().mean((1, 2, 3))
    assert eyes[labels % 3 == 2].mean() < eyes[labels % 3 == 0].mean() - 20


@pytest.mark.parametrize("size", [28, 32])
def test_other_files_of_the_same_names_are_another_set(own_cache, tmp_path, size):
    """As those of Fashion-MNIST are: of the same sizes, too."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    config = replace(MNIST_CONFIG, root=str(tmp_path), image_size=size)
    found = []
    for shift in (0, 0, 1):
        for name, content in mnist_files().items():
            if "images" in name:
                content = content[:-784] + bytes([200 * shift]) * 784
            (raw / name).write_bytes(content)
            os.utime(raw / name, (0, shift))
        splits = load(config, labels=True)
        found.append((splits.fingerprint, pixels(splits.test)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert found[0][0]["test"] != found[2][0]["test"] and not torch.equal(found[0][1], found[2][1])


def test_a_set_is_known_by_its_images_not_by_where_they_lie(own_cache, tmp_path):
    fingerprints = []
    for folder in ("one", "two"):
        for name, content in mnist_files().items():
            file = tmp_path / folder / "MNIST" / "raw" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        fingerprints.append(load(replace(MNIST_CONFIG, root=str(tmp_path / folder)), labels=True).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0]["train"]["images"] == sum(fingerprints[0]["train"]["per_class"]) == 30
