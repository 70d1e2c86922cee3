"""What of an inference is done: whole batches, so that a run that goes on gives the same bytes.

    OUTPUT/predictions.jsonl   one line for each photograph; published last: it says "complete"
    OUTPUT/coco.json           with ``coco_json``: a COCO result with categories and images
    OUTPUT/.progress/ID.json   what a finished batch holds, until all are

A batch goes through the network as a whole, and its composition changes the last bits of the
logits: so its ID stands for the network, the settings and all of its photographs.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash
from pycocotools import mask as rle

from .. import storage
from ..errors import ConfigError
from ..taxonomy import Taxonomy
from .config import InferConfig
from .inputs import PROGRESS, InputImage
from .predictor import ReadyNetwork

_LOCK_NAME = "lock"
PREDICTIONS, COCO_JSON = "predictions.jsonl", "coco.json"
_REQUESTS = 16  # at once
_VERSION = 1  # of what the same photographs are predicted to
_WITHOUT_EFFECT = {
    *("checkpoint", "input", "shards", "predictions", "output", "device", "pictures"),
    *("remote", "cache_dir", "cache_bytes"),
}


def identity(ready: ReadyNetwork, config: InferConfig) -> str:
    """Return what stands for the weights and the settings that masks depend on."""
    preprocess, taxonomy = ready.loaded.preprocess, ready.loaded.taxonomy
    settings = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    told = [_VERSION, ready.digest(), settings, preprocess.to_dict(), taxonomy.to_dict()]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def batch_id(of_run: str, batch: Sequence[InputImage]) -> str:
    """Return the ID of a batch of photographs, in a run of an `identity`."""
    told = [of_run, *((image.name, image.source, image.stamp) for image in batch)]
    return xxhash.xxh3_64_hexdigest(json.dumps(told).encode())


def refuse_strangers(output: str, images: Sequence[InputImage]) -> None:
    """Make sure that no file is replaced that is not of an earlier inference.

    Raises
    ------
    ConfigError
        If one would be.
    """
    if storage.exists(storage.join(output, PREDICTIONS)) or storage.is_dir(
        storage.join(output, PROGRESS)
    ):
        return
    there = set(storage.walk_files(output)) if storage.is_dir(output) else set()
    wanted = {"config.yaml", COCO_JSON, *(f"{image.name}.png" for image in images)}
    if strangers := sorted(there & wanted):
        raise ConfigError(
            f"--output {output}: {strangers[0]} is there, and not of an inference; give the masks "
            "a folder of their own"
        )


class Progress:
    """The batches of a run that are done, those of a run before included."""

    def __init__(self, output: str, ids: Sequence[str]) -> None:
        self._output = output
        self._ids = ids
        self._before = self._of_before()
        self.complete = list(self._before) == list(ids) and not any(
            map(_is_bad, self._before.values())
        )
        """Whether there is nothing to do."""

    def _url(self, *parts: str) -> str:
        return storage.join(self._output, PROGRESS, *parts)

    def records(self) -> list[dict[str, Any]]:
        """Return what the list of a finished run holds, a record for each photograph."""
        url = storage.join(self._output, PREDICTIONS)
        lines = storage.read_bytes(url).splitlines() if storage.exists(url) else []
        return [json.loads(line) for line in lines]

    def _of_before(self) -> dict[str, list[dict[str, Any]]]:
        """Return the records of a finished run by batch; empty where there is none."""
        found: dict[str, list[dict[str, Any]]] = {}
        try:
            for record in self.records():
                found.setdefault(record.pop("batch"), []).append(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return found

    @contextlib.contextmanager
    def begun(self, coco_json: bool) -> Iterator[None]:
        """Keep other inferences out of a local folder, and make it ready.

        What a killed process left half-written is removed, what a finished run has of this one is
        taken over, and no sign is left that all is complete.

        Raises
        ------
        ConfigError
            If another inference is at work there.
        """
        with contextlib.ExitStack() as held:
            if not storage.is_remote(self._output):
                before = storage.is_dir(self._url())
                try:
                    alone = held.enter_context(storage.exclusive(self._url(_LOCK_NAME)))
                except BlockingIOError:
                    raise ConfigError(
                        f"--output {self._output}: an inference is at work in it; wait for it, or "
                        "choose another folder"
                    ) from None
                if alone and before:
                    self._tidy_up()
            self._take_over(coco_json)
            yield

    def _tidy_up(self) -> None:
        for name in storage.walk_files(self._output):
            if storage.is_half_written(name):
                storage.remove(storage.join(self._output, name))

    def _take_over(self, coco_json: bool) -> None:
        wanted = set(self._ids)
        for batch, records in self._before.items():
            # Outlines are not in the list.
            if batch in wanted and not (coco_json or _is_bad(records)):
                self.publish(batch, records)
        storage.remove(storage.join(self._output, PREDICTIONS))

    def done(self) -> set[str]:
        """Return the batches whose files are all there, and whose photographs were all good."""
        listed = {name.removesuffix(".json") for name in storage.list_files(self._url())}
        ours = [batch for batch in self._ids if batch in listed]
        return {batch for batch, records in self._notes(ours) if not _is_bad(records)}

    def publish(self, batch: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Note that a batch is done."""
        storage.publish_bytes(self._url(f"{batch}.json"), json.dumps(records).encode())

    def _notes(self, batches: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the records of batches, in order; an object store is asked for many at once."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            yield from zip(batches, pool.map(self._records, batches), strict=True)

    def _records(self, batch: str) -> list[dict[str, Any]]:
        url = self._url(f"{batch}.json")
        try:
            records: list[dict[str, Any]] = json.loads(storage.read_bytes(url))
        except (OSError, ValueError):  # of a damaged disk: done again
            return [{"error": "cannot be read"}]
        return records

    def finish(self, taxonomy: Taxonomy, coco_json: bool) -> None:
        """Write the lists of all photographs, and remove the notes."""
        lines: list[str] = []
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for batch, records in self._notes(self._ids):
            for record in records:
                segments = record.pop("segments", [])
                lines.append(json.dumps({**record, "batch": batch}))
                if "error" in record:
                    continue
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
        if coco_json:
            content = {
                "images": images,
                "categories": [
                    {"id": entry.category_ids[0], "name": entry.name}
                    for entry in taxonomy.classes[1:]
                ],
                "annotations": annotations,
            }
            url = storage.join(self._output, COCO_JSON)
            storage.publish_bytes(url, json.dumps(content).encode())
        text = "".join(f"{line}\n" for line in lines)
        storage.publish_bytes(storage.join(self._output, PREDICTIONS), text.encode())
        self.clear()

    def clear(self) -> None:
        """Remove the notes, once all is complete."""
        storage.remove(self._url())


def _is_bad(records: Sequence[Mapping[str, Any]]) -> bool:
    return any("error" in record for record in records)


def _extent(segmentation: dict[str, Any]) -> dict[str, Any]:
    return {
        "area": int(rle.area(segmentation)),
        "bbox": [float(value) for value in rle.toBbox(segmentation)],
    }
