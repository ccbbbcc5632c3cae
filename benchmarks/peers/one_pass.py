"""ROOT SIZE: images per second of one pass of a DataLoader over the image files under ROOT."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from torch.utils.data import DataLoader
from torchvision import transforms as T

from crayon.data.folder import walk
from crayon.system.host import usable_cores
from peers.torch_data import Flat


def main() -> None:
    root, size = Path(sys.argv[1]), int(sys.argv[2])
    change = T.Compose([T.Resize(size), T.CenterCrop(size), T.ToTensor()])
    images = Flat(root, [found.path for found in sorted(walk(root))], change)
    workers = usable_cores()
    begun = time.perf_counter()
    for _ in DataLoader(images, 256, num_workers=workers):
        pass
    print(len(images) / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
