"""One loader doing one job in a process of its own, so that all are measured alike.

    python -m stream.reader NAME JOB ROOT [OPTION]

NAME is ours, plain, webdataset, mosaicml or litdata; the last two run under a Python that knows
nothing of cocoseg. JOB is one of

- ``make``: write a peer's own copy of the shards: the same bytes, in the same order;
- ``digest``: a number that is equal where all decoded arrays are;
- ``read``: CPU of reading and decoding, all threads;
- ``train``: clock and CPU of the full path with one worker, and that worker's memory;
- ``first``: clock from the start to the first batch with OPTION (0 or 1) workers; ``first-cold``:
  ours, without the fork server that ``cocoseg train`` starts while it imports torch;
- ``resume``: ours, as ``first`` without workers, at many steps from 0 and from 10**6 on.

Prints JSON in its last line. ROOT holds ``shards`` and ``augment.json``, the training transforms
that all use. No loader shuffles through a buffer: filling it would cost seconds before a first
batch.
"""

import hashlib
import io
import itertools
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from measure import process_cpu, process_memory
from numpy.typing import NDArray
from PIL import Image

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""RGB, shape (H, W, 3), and train ids, shape (H, W)."""

BATCH, SIZE = 8, 512
FAR = 10**6
"""The optimizer step to resume at."""
_WARM = 96  # samples that are read before the clock starts
_WARM_BATCHES = 38  # the same for batches: 304 samples, then memory is read
_RESUMED = 15  # steps to resume at, near 0 and near FAR
_CHUNK = "64MB"


def decode(image: bytes, mask: bytes) -> Pair:
    """Decode with Pillow, as people do."""
    with Image.open(io.BytesIO(image)) as photo, Image.open(io.BytesIO(mask)) as raster:
        return np.array(photo.convert("RGB")), np.array(raster)


def members(root: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield key, photograph and mask of every sample, as the shards hold them."""
    for path in sorted((root / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            found: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
        for key, sample in found.items():
            yield key, sample["jpg"], sample["png"]


class Ours:
    """`ShardSet`, and `micro_batches` as `cocoseg train` uses it."""

    modules = "cocoseg.train.batches"

    def __init__(self, root: Path) -> None:
        from cocoseg.model.preprocess import Preprocess
        from cocoseg.processes import keep_freed_memory
        from cocoseg.shards import order, reader
        from cocoseg.train import batches, config

        keep_freed_memory()  # as `cocoseg train` does
        self.folder, self.normalize = str(root / "shards"), Preprocess(SIZE).normalizer()
        self.order, self.reader, self.train, self.config = order, reader, batches, config

    def pairs(self) -> Iterator[Pair]:
        """Read one after the other."""
        shards = self.reader.ShardSet([self.folder])
        for position in range(len(shards)):
            sample = shards.read(position)
            yield sample.image, sample.mask

    def batches(self, workers: int, first_step: int = 0) -> Iterator[Any]:
        """Yield what the network takes, on its device: here the CPU."""
        shards = self.reader.ShardSet([self.folder])
        samples = self.train.TrainingSamples(
            shards,
            self.order.SampleOrder(shards.shard_sizes, 0),
            self.config.AugmentConfig(),
            SIZE,
        )
        steps = self.train.micro_batches(
            samples, self.order.BatchLayout(BATCH, 1, 1), 0, first_step, sys.maxsize, workers, False
        )
        for (batch,) in steps:
            yield self.normalize(batch.images), batch.masks.long()


class Plain:
    """A map-style data set that rasterizes as it goes; larger instances first."""

    def __init__(self, root: Path) -> None:
        from prepare.data import DataSet

        from prepare import plain

        self.plain, self.data = plain, DataSet(root / "data", 0)

    def pairs(self) -> Iterator[Pair]:
        """Decode and paint."""
        coco = self.plain.load(self.data.annotations)
        ids = self.plain.train_ids(coco)
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(self.data.images / image["file_name"]) as photo:
                pixels = np.array(photo.convert("RGB"))
            yield pixels, self.plain.paint(coco, image, ids)


class _Peer:
    """A data set of encoded samples, decoded by Pillow, transformed in its worker."""

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations
        import torch

        self.root, self.torch = root, torch
        self.transform = albumentations.Compose(
            [albumentations.load(root / "augment.json"), albumentations.Normalize()]
        )

    def item(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[Any, Any]:
        """Return CHW float32 and int64: what the network takes."""
        done = self.transform(image=image, mask=mask)
        image_CHW = self.torch.from_numpy(done["image"]).permute(2, 0, 1).contiguous()
        return image_CHW, self.torch.from_numpy(done["mask"]).long()


class Webdataset(_Peer):
    """The shards as they are, read as webdataset's documentation does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        import webdataset

        self.wds = webdataset

    def _dataset(self, shardshuffle: int | bool) -> Any:
        urls = [str(path) for path in sorted((self.root / "shards").glob("*.tar"))]
        raw = self.wds.WebDataset(urls, shardshuffle=shardshuffle).to_tuple("jpg", "png")
        return raw.map(lambda sample: decode(*sample))

    def pairs(self) -> Iterator[Pair]:
        """Iterate."""
        yield from self._dataset(False)

    def batches(self, workers: int) -> Iterator[Any]:
        """Collate by the loader: straight into shared memory, faster than ``.batched()``."""
        dataset = self._dataset(100).map(lambda pair: self.item(*pair))
        yield from self.wds.WebLoader(dataset, batch_size=BATCH, num_workers=workers)


def _stand_in_for_torchvision() -> None:
    """Let mosaicml import: it takes names from torchvision, which not every torch can load."""
    names = {"datasets.VisionDataset": object, "transforms.functional.to_tensor": None}
    for path, value in names.items():
        module, _, name = f"torchvision.{path}".rpartition(".")
        sys.modules[module] = ModuleType(module)
        setattr(sys.modules[module], name, value)


class Mosaicml(_Peer):
    """StreamingDataset of MosaicML, local MDS shards."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        _stand_in_for_torchvision()
        import streaming
        from torch.utils.data import DataLoader

        self.streaming, self.loader = streaming, DataLoader

    def make(self) -> None:
        """Write bytes: the encodings pass them through and decode them by Pillow."""
        columns = {"key": "str", "image": "jpeg", "mask": "png"}
        with self.streaming.MDSWriter(
            out=str(self.root / "mds"), columns=columns, size_limit=_CHUNK.lower()
        ) as out:
            for key, image, mask in members(self.root):
                out.write({"key": key, "image": image, "mask": mask})

    def _dataset(self, shuffle: bool, item: Callable[..., Any] | None = None) -> Any:
        class Pairs(self.streaming.StreamingDataset):  # type: ignore[name-defined,misc]
            def __getitem__(self, at: int) -> Any:
                sample = super().__getitem__(at)
                pair = np.array(sample["image"].convert("RGB")), np.array(sample["mask"])
                return item(*pair) if item else pair

        return Pairs(local=str(self.root / "mds"), shuffle=shuffle, batch_size=BATCH)

    def pairs(self) -> Iterator[Pair]:
        """Iterate."""
        yield from self._dataset(False)

    def batches(self, workers: int) -> Iterator[Any]:
        """Use PyTorch's loader, as its documentation does."""
        yield from self.loader(
            self._dataset(True, self.item), batch_size=BATCH, num_workers=workers
        )


def as_it_is(sample: Any) -> Any:
    """Return what litdata is to write."""
    return sample


class Litdata(_Peer):
    """StreamingDataset of Lightning, local chunks."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        import litdata

        self.litdata = litdata

    def make(self) -> None:
        """Write bytes, in order."""
        inputs = [
            dict(zip(("key", "image", "mask"), one, strict=True)) for one in members(self.root)
        ]
        self.litdata.optimize(
            as_it_is,
            inputs,
            str(self.root / "litdata"),
            chunk_bytes=_CHUNK,
            num_workers=1,
            reorder_files=False,
        )

    def _dataset(self, shuffle: bool, item: Callable[..., Any] | None = None) -> Any:
        class Pairs(self.litdata.StreamingDataset):  # type: ignore[name-defined,misc]
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                pair = decode(sample["image"], sample["mask"])
                return item(*pair) if item else pair

        return Pairs(str(self.root / "litdata"), shuffle=shuffle)

    def pairs(self) -> Iterator[Pair]:
        """Iterate."""
        yield from self._dataset(False)

    def batches(self, workers: int) -> Iterator[Any]:
        """Use its own loader."""
        dataset = self._dataset(True, self.item)
        yield from self.litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)


LOADERS: dict[str, Any] = {
    "ours": Ours,
    "plain": Plain,
    "webdataset": Webdataset,
    "mosaicml": Mosaicml,
    "litdata": Litdata,
}


def digest(loader: Any) -> dict[str, Any]:
    """Sum the digests of all samples: their order does not matter."""
    total = count = 0
    for image, mask in loader.pairs():
        assert image.dtype == mask.dtype == np.uint8 and image.shape == (*mask.shape, 3)
        both = hashlib.sha256(image.tobytes() + mask.tobytes()).digest()
        total, count = total + int.from_bytes(both[:6], "big"), count + 1
    return {"digest": total, "count": count}


def read(loader: Any) -> dict[str, float]:
    """Return the CPU of one sample [s], all threads of this process."""
    pairs = loader.pairs()
    for _ in itertools.islice(pairs, _WARM):
        pass
    start = time.process_time()
    count = sum(1 for _ in pairs)
    return {"cpu": (time.process_time() - start) / count}


def train(loader: Any, batches: int) -> dict[str, float]:
    """Return clock and CPU of one sample [s], and the worker's memory [bytes].

    This process has one thread, whatever the loader: it stands for the device, and on two cores a
    second OpenMP thread would spin on the worker's.
    """
    import multiprocessing

    import torch

    torch.set_num_threads(1)
    found = loader.batches(1)
    for _ in itertools.islice(found, _WARM_BATCHES):
        pass
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    rss, pss = process_memory(worker.pid)
    start, own, below = time.perf_counter(), time.process_time(), process_cpu(worker.pid)
    for images, masks in itertools.islice(found, batches):
        assert images.shape == (BATCH, 3, SIZE, SIZE) and str(images.dtype) == "torch.float32"
        assert masks.shape == (BATCH, SIZE, SIZE) and str(masks.dtype) == "torch.int64"
    each = 1 / (batches * BATCH)
    return {
        "clock": each * (time.perf_counter() - start),
        "main": each * (time.process_time() - own),
        "worker": each * (process_cpu(worker.pid) - below),
        "rss": rss,
        "pss": pss,
    }


def first(loader: Any, *arguments: int) -> dict[str, float]:
    """Return the clock from nothing to the first batch [s]."""
    start = time.perf_counter()
    batches = loader.batches(*arguments)
    next(batches)
    return {"clock": time.perf_counter() - start}


def resume(loader: Any) -> dict[str, float]:
    """Return the median clocks to first batches, near step 0 and near FAR, in turn [s]."""
    found: dict[int, list[float]] = {0: [], FAR: []}
    for number in range(_RESUMED):
        for base, clocks in found.items():
            clocks.append(first(loader, 0, base + number)["clock"])
    return {"near": statistics.median(found[0][1:]), "far": statistics.median(found[FAR][1:])}


def _idle() -> None:
    pass


def warm() -> None:
    """Start the fork server as `cocoseg train` does, and wait until it has imported all."""
    from cocoseg.processes import start_context, warm_up

    warm_up("cocoseg.train.batches")
    process = start_context().Process(target=_idle)  # type: ignore[attr-defined]
    process.start()
    process.join()


def main(name: str, job: str, root: Path, *options: str) -> None:
    """Do one job."""
    loader = LOADERS[name](root)
    numbers = [int(option) for option in options]
    if name == "ours" and job == "first" and numbers[0]:
        warm()
    jobs: dict[str, Callable[..., Any]] = {
        "digest": digest,
        "read": read,
        "train": train,
        "first": first,
        "first-cold": first,
        "resume": resume,
    }
    result = loader.make() if job == "make" else jobs[job](loader, *numbers)
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
