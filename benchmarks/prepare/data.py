"""Data sets of any size, made from a few pictures: new ids, and a file of its own for each image.

The pictures are real COCO's where COCOSEG_DATA names a folder with ``coco/annotations`` and
``coco/train2017``, and drawn by `cocoseg demo` elsewhere. They are copied once into a temporary
folder and hard-linked from there.
"""

import io
import itertools
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cocoseg.demo.scenes import draw_dataset
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from PIL import Image

_DRAWN = 200
_LINKS = 60_000  # ext4 allows 65,000 names of one file


@dataclass(frozen=True, slots=True)
class DataSet:
    """A COCO JSON and its pictures, laid out as COCO's own."""

    root: Path
    count: int

    @property
    def annotations(self) -> Path:
        """The JSON."""
        return self.root / "annotations" / "instances_train2017.json"

    @property
    def images(self) -> Path:
        """The folder of pictures."""
        return self.root / "images" / "train2017"

    def shards(self, output: Path, samples_per_shard: int) -> Path:
        """Prepare it, and return the folder of shards."""
        prepare_shards(
            PrepareConfig(
                annotations=(str(self.annotations),),
                images=(str(self.images),),
                output=str(output),
                engine="inline",
                samples_per_shard=samples_per_shard,
            )
        )
        return output

    @property
    def json_bytes(self) -> int:
        """Size of the JSON."""
        return self.annotations.stat().st_size


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that everything is made of."""

    name: str
    folder: Path
    images: tuple[dict[str, Any], ...]
    annotations: dict[int, list[dict[str, Any]]]
    """By image id; values stay raw JSON, but for the ids."""
    categories: msgspec.Raw

    @classmethod
    def load(cls, scratch: Path) -> "Pictures":
        """Copy real COCO's pictures, or draw some."""
        folder = scratch / "pictures"
        real = Path(os.environ.get("COCOSEG_DATA") or scratch / "absent") / "coco"
        if (real / "annotations").is_dir():
            shutil.copytree(real / "train2017", folder, copy_function=shutil.copyfile)
            path, name = real / "annotations" / "instances_train2017.json", "real COCO"
        else:
            drawn = draw_dataset(scratch / "drawn", train_images=_DRAWN, val_images=1, seed=0)
            drawn.train.images.rename(folder)
            path, name = drawn.train.annotations, "drawn pictures"
        return cls._read(name, folder, path.read_bytes())

    @classmethod
    def _read(cls, name: str, folder: Path, content: bytes) -> "Pictures":
        sections = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        raw = list[dict[str, msgspec.Raw]]
        images = [
            _with_ints(one, "id") for one in msgspec.json.decode(sections["images"], type=raw)
        ]
        for image in images:
            image["file_name"] = msgspec.json.decode(image["file_name"])
        annotations = defaultdict(list)
        for one in msgspec.json.decode(sections["annotations"], type=raw):
            entry = _with_ints(one, "id", "image_id")
            annotations[entry["image_id"]].append(entry)
        return cls(name, folder, tuple(images), dict(annotations), sections["categories"])

    def replicate(self, root: Path, count: int, files: bool = True) -> DataSet:
        """Make a data set of `count` images; without `files`, only its JSON."""
        data = DataSet(root, count)
        data.annotations.parent.mkdir(parents=True)
        with open(data.annotations, "wb") as file:
            file.write(b'{"info": {}, "licenses": [], "categories": ' + bytes(self.categories))
            file.write(b', "images": [')
            _write_list(file, self._images(count))
            file.write(b'], "annotations": [')
            _write_list(file, self._annotations(count))
            file.write(b"]}")
        if files:
            data.images.mkdir(parents=True)
            self._link(data.images, count)
        return data

    def _images(self, count: int) -> Iterator[dict[str, Any]]:
        for number, image in enumerate(itertools.islice(itertools.cycle(self.images), count), 1):
            yield image | {"id": number, "file_name": _file_name(number)}

    def _annotations(self, count: int) -> Iterator[dict[str, Any]]:
        ids = itertools.count(1)
        for number, image in enumerate(itertools.islice(itertools.cycle(self.images), count), 1):
            for annotation in self.annotations.get(image["id"], ()):
                yield annotation | {"id": next(ids), "image_id": number}

    def _link(self, folder: Path, count: int) -> None:
        for number, image in enumerate(itertools.islice(itertools.cycle(self.images), count), 1):
            place = folder / _file_name(number)
            source = self.folder / image["file_name"]
            if source.stat().st_nlink < _LINKS:
                os.link(source, place)
            else:
                shutil.copyfile(source, place)

    def tiny(self, folder: Path, factor: int = 8) -> "Pictures":
        """Return the same pictures and polygons, `factor` times smaller; RLE is left out."""
        folder.mkdir()
        images = []
        for image in self.images:
            with Image.open(self.folder / image["file_name"]) as picture:
                size = (max(1, picture.width // factor), max(1, picture.height // factor))
                picture.resize(size).save(folder / image["file_name"], "JPEG", quality=80)
            images.append(image | {"width": size[0], "height": size[1]})
        annotations = {
            image_id: [
                one | {"segmentation": small}
                for one in found
                if (small := _shrunk(one["segmentation"], factor)) is not None
            ]
            for image_id, found in self.annotations.items()
        }
        return Pictures(
            f"{self.name} / {factor}", folder, tuple(images), annotations, self.categories
        )


def _with_ints(entry: dict[str, msgspec.Raw], *names: str) -> dict[str, Any]:
    return entry | {name: msgspec.json.decode(entry[name]) for name in names}


def _shrunk(raw: msgspec.Raw, factor: int) -> list[list[float]] | None:
    content = msgspec.json.decode(raw)
    if not isinstance(content, list):
        return None
    return [[round(number / factor, 2) for number in polygon] for polygon in content]


def _write_list(file: io.BufferedWriter, entries: Iterable[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        file.write((b", " if number else b"") + msgspec.json.encode(entry))


def _file_name(number: int) -> str:
    return f"{number:012d}.jpg"
