"""What of an inference is done: whole batches, so that a run that goes on gives the same bytes.

    OUTPUT/predictions.jsonl   one line for each photograph; published last: it says "complete"
    OUTPUT/coco.json           with ``coco_json``: a COCO result with categories and images
    OUTPUT/.progress/ID.json   what a finished batch holds, until all are

A batch goes through the network as a whole, and its composition changes the last bits of the
logits: so its ID stands for the network, the settings and all of its photographs.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import Any

import xxhash
from pycocotools import mask as rle

from .. import storage
from ..errors import ConfigError, DataError
from ..model.weights import LoadedNetwork, weights_digest
from ..objectstore import REQUESTS
from ..taxonomy import Taxonomy
from .config import InferConfig
from .folder import COCO_JSON, PREDICTIONS, PROGRESS, SETTINGS, OutputFolder
from .inputs import InputImage
from .outputs import files_of

_LOCK_NAME = "lock"
_NOTE = re.compile(r"[0-9a-f]{16}\.json")
_VERSION = 2  # of what the same photographs are predicted to
_WITHOUT_EFFECT = {
    *("checkpoint", "input", "shards", "predictions", "output", "device", "pictures"),
    *("remote", "cache_dir", "cache_bytes"),
}


def identity(loaded: LoadedNetwork, config: InferConfig, precision: str, tf32: bool) -> str:
    """Return what stands for the weights and the settings that masks depend on."""
    preprocess, taxonomy = loaded.preprocess, loaded.taxonomy
    settings = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    computed = [weights_digest(loaded.network), precision, tf32]
    told = [_VERSION, computed, settings, preprocess.to_dict(), taxonomy.to_dict()]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def batch_id(of_run: str, batch: Sequence[InputImage]) -> str:
    """Return the ID of a batch of photographs, in a run of an `identity`."""
    told = [of_run, *((image.name, image.source, image.stamp) for image in batch)]
    return xxhash.xxh3_64_hexdigest(json.dumps(told).encode())


def wanted_files(config: InferConfig, images: Iterable[InputImage]) -> set[str]:
    """Return the relative paths of what a run of such settings leaves, notes not included."""
    lists = (PREDICTIONS, COCO_JSON) if config.coco_json else (PREDICTIONS,)
    of_images = (file for image in images for file in files_of(config, image.name).values())
    return {SETTINGS, *lists, *of_images}


def refuse_strange_notes(output: str) -> None:
    """Make sure that the folder of notes holds nothing else, as it is removed in the end.

    Raises
    ------
    ConfigError
        If it does.
    """
    folder = storage.join(output, PROGRESS)
    there = storage.walk_files(folder) if storage.is_dir(folder) else []
    for name in there:
        ours = name == _LOCK_NAME or _NOTE.fullmatch(name) or storage.is_half_written(name)
        if "/" in name or not ours:
            raise ConfigError(
                f"--output {output}: {PROGRESS}/{name} is there, and not of an inference; choose a "
                "folder of its own"
            )


class Progress:
    """The batches of a run that are done, those of a run before included.

    Parameters
    ----------
    config
        The settings of the run.
    batches
        All photographs, in batches by their ID.
    folder
        The output, where no file of others is in the way.
    """

    def __init__(
        self, config: InferConfig, batches: Mapping[str, Sequence[InputImage]], folder: OutputFolder
    ) -> None:
        self._config = config
        self._batches = batches
        self._folder = folder

    def _url(self, *parts: str) -> str:
        return storage.join(self._folder.url, PROGRESS, *parts)

    @property
    def complete(self) -> bool:
        """Whether nothing is to be done: a run before did the same, and all of it is there."""
        if storage.is_dir(self._url()):
            return False
        before = self._of_before()
        return (
            list(before) == list(self._batches)
            and all(starmap(self._is_whole, before.items()))
            and self._folder.wanted <= self._folder.there
        )

    def records(self) -> list[dict[str, Any]]:
        """Return what the list of a finished run holds, a record for each photograph."""
        url = storage.join(self._folder.url, PREDICTIONS)
        return [json.loads(line) for line in storage.read_bytes(url).splitlines()]

    def _of_before(self) -> dict[str, list[dict[str, Any]]]:
        """Return the records of a finished run by batch; empty where there is none."""
        found: dict[str, list[dict[str, Any]]] = {}
        if PREDICTIONS in self._folder.there:
            try:
                for record in self.records():
                    found.setdefault(str(record.pop("batch")), []).append(record)
            except (ValueError, KeyError, TypeError, AttributeError):  # edited, or a damaged disk
                return {}
        return found

    def _is_whole(self, batch: str, records: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether a batch is one of this run, all was good, and every file is there."""
        images = self._batches.get(batch, ())
        if [record.get("image") for record in records] != [image.source for image in images]:
            return False
        files = (files_of(self._config, image.name) for image in images)
        return not any("error" in record for record in records) and all(
            self._folder.there.issuperset(of_image.values()) for of_image in files
        )

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Keep other inferences out of a local folder, and make it ready.

        What a killed process left half-written is removed, what a finished run has of this one is
        taken over, and no sign is left that all is complete. Notes of other settings are removed:
        this run may overwrite what they tell of.

        Raises
        ------
        ConfigError
            If another inference is at work there.
        """
        with contextlib.ExitStack() as held:
            if not storage.is_remote(self._folder.url):
                killed = storage.is_dir(self._url())
                try:
                    alone = held.enter_context(storage.exclusive(self._url(_LOCK_NAME)))
                except BlockingIOError:
                    raise ConfigError(
                        f"--output {self._folder.url}: an inference is at work in it; wait for it, "
                        "or choose another folder"
                    ) from None
                self._folder = self._folder.again()  # now for certain
                if alone and killed:
                    self._folder.tidy_up()
                    storage.remove_half_written(self._url())
            self._folder.claim()
            storage.remove_files(self._url(), self._noted() - {*map(_note, self._batches)})
            self._take_over()
            yield

    def _take_over(self) -> None:
        before = self._of_before()
        if self._config.coco_json and not self._add_outlines(before):
            before = {}
        for batch, records in before.items():
            if self._is_whole(batch, records):
                self.publish(batch, records)
        storage.remove(storage.join(self._folder.url, PREDICTIONS))

    def _add_outlines(self, before: Mapping[str, list[dict[str, Any]]]) -> bool:
        """Give the records of a finished run the outlines that its COCO result holds."""
        good = [one for records in before.values() for one in records if "error" not in one]
        try:
            content = json.loads(storage.read_bytes(storage.join(self._folder.url, COCO_JSON)))
            by_id: dict[int, list[dict[str, Any]]] = {}
            for image, record in zip(content["images"], good, strict=True):
                record["segments"] = by_id[image["id"]] = []
            for one in content["annotations"]:
                segment = {key: one[key] for key in ("category_id", "segmentation")}
                by_id[one["image_id"]].append(segment)
        except (ConfigError, ValueError, KeyError, TypeError):  # removed, or of a damaged disk
            return False
        return True

    def done(self) -> set[str]:
        """Return the batches whose files are all there, and whose photographs were all good."""
        noted = self._noted()
        ours = [batch for batch in self._batches if _note(batch) in noted]
        return {batch for batch, records in self._notes(ours) if self._is_whole(batch, records)}

    def _noted(self) -> set[str]:
        return {name for name in storage.list_files(self._url()) if name != _LOCK_NAME}

    def publish(self, batch: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Note that a batch is done."""
        storage.publish_bytes(self._url(_note(batch)), json.dumps(records).encode())

    def _notes(self, batches: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the records of batches, in order; an object store is asked for many at once."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from zip(batches, pool.map(self._records, batches), strict=True)

    def _records(self, batch: str) -> list[dict[str, Any]]:
        url = self._url(_note(batch))
        try:
            records: list[dict[str, Any]] = json.loads(storage.read_bytes(url))
        except (OSError, ValueError):  # of a damaged disk: done again
            return []
        return records

    def finish(self, taxonomy: Taxonomy) -> None:
        """Write the lists of all photographs, and remove the notes and what is left over.

        Raises
        ------
        DataError
            If no photograph could be read; all stays as it is then.
        """
        lines: list[str] = []
        bad: list[str] = []
        good: list[InputImage] = []
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for batch, records in self._notes(list(self._batches)):
            for image, record in zip(self._batches[batch], records, strict=True):
                segments = record.pop("segments", [])
                lines.append(json.dumps({**record, "batch": batch}))
                if "error" in record:
                    bad.append(record["error"])
                    continue
                good.append(image)
                size = {"height": record["height"], "width": record["width"]}
                images.append({"id": len(images) + 1, "file_name": record["image"], **size})
                annotations += [
                    {
                        "id": len(annotations) + number,
                        "image_id": len(images),
                        **segment,
                        **_extent(segment["segmentation"]),
                        "iscrowd": 0,
                    }
                    for number, segment in enumerate(segments, 1)
                ]
        if not good:
            raise DataError("no image could be read:\n  " + "\n  ".join(bad[:5]))
        if self._config.coco_json:
            content = {
                "images": images,
                "categories": [
                    {"id": entry.category_ids[0], "name": entry.name}
                    for entry in taxonomy.classes[1:]
                ],
                "annotations": annotations,
            }
            url = storage.join(self._folder.url, COCO_JSON)
            storage.publish_bytes(url, json.dumps(content).encode())
        self._folder.settle(wanted_files(self._config, good))
        text = "".join(f"{line}\n" for line in lines)
        storage.publish_bytes(storage.join(self._folder.url, PREDICTIONS), text.encode())
        storage.remove(self._url())


def _note(batch: str) -> str:
    return f"{batch}.json"


def _extent(segmentation: dict[str, Any]) -> dict[str, Any]:
    return {
        "area": int(rle.area(segmentation)),
        "bbox": [float(value) for value in rle.toBbox(segmentation)],
    }
