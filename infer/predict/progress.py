"""What of an inference is done: whole batches, so that a resumed run gives the same bytes.

    OUTPUT/predictions.jsonl   one line for each image; published last: it says "complete"
    OUTPUT/coco.json           with ``coco_json``: a COCO result with categories and images
    OUTPUT/.progress/ID.json   what a finished batch holds, until all are

A batch goes through the network as a whole, and its composition changes the last bits of the
logits: so its ID stands for the network, the settings and all of its images.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import Any

import xxhash

from ...checkpoint.network import LoadedNetwork, weights_digest
from ...errors import CocosegError, ConfigError, DataError
from ...storage import Location
from ...storage.local import is_half_written
from ...storage.location import LOCK
from ...storage.output import OutputFolder
from ...storage.remote import REQUESTS
from ...taxonomy import Taxonomy
from ..config import InferConfig
from ..folder import CLASSES, COCO_JSON, PREDICTIONS, PROGRESS, SETTINGS
from .coco_json import SEGMENT_KEYS, coco_dataset
from .inputs import InputImage
from .outputs import files_of

_OLD_LOCK = "lock"  # that earlier versions left here
_NOTE = re.compile(r"[0-9a-f]{16}\.json")
_VERSION = 3  # of what the same images are predicted to; a changed default is another
_COCO_JSON_VERSION = 3  # of what COCO_JSON holds
_WITHOUT_EFFECT = {
    *("checkpoint", "input", "shards", "predictions", "output", "device", "pictures"),
    *("quick", "compare_tta"),
    *("remote", "cache_dir", "cache_bytes"),
}


def identity(loaded: LoadedNetwork, config: InferConfig, precision: str, tf32: bool) -> str:
    """Return what stands for the weights and the settings that masks depend on."""
    preprocess, taxonomy = loaded.preprocess, loaded.taxonomy
    # Without defaults: a setting that a later version adds changes no mask of this one.
    settings = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT, exclude_defaults=True)
    computed = [weights_digest(loaded.network), precision, tf32]
    settings["coco_json"] = config.coco_json and _COCO_JSON_VERSION
    told = [_VERSION, computed, settings, preprocess.to_dict(), taxonomy.to_dict()]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def batch_id(of_run: str, batch: Sequence[InputImage]) -> str:
    """Return the ID of a batch of images, in a run of an `identity`."""
    told = [of_run, *((image.name, image.source, image.stamp) for image in batch)]
    return xxhash.xxh3_64_hexdigest(json.dumps(told).encode())


def wanted_files(config: InferConfig, images: Iterable[InputImage]) -> set[str]:
    """Return the relative paths of what a run of such settings leaves, notes not included."""
    lists = (PREDICTIONS, COCO_JSON) if config.coco_json else (PREDICTIONS,)
    of_images = (file for image in images for file in files_of(config, image.name).values())
    return {SETTINGS, CLASSES, *lists, *of_images}


def refuse_strange_notes(output: Location) -> None:
    """Make sure that the folder of notes holds nothing else, as it is removed in the end.

    Raises
    ------
    ConfigError
        If it does.
    """
    folder = output / PROGRESS
    for name in folder.walk_files() if folder.is_dir() else ():
        ours = name == _OLD_LOCK or _NOTE.fullmatch(name) or is_half_written(name)
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
        All images, in batches by their ID.
    folder
        The output, where no file of others is in the way.
    """

    def __init__(
        self, config: InferConfig, batches: Mapping[str, Sequence[InputImage]], folder: OutputFolder
    ) -> None:
        self._config = config
        self._batches = batches
        self._folder = folder
        self._notes = folder.location / PROGRESS

    @property
    def complete(self) -> bool:
        """Whether nothing is to be done: a run before did the same, and all of it is there."""
        if self._notes.is_dir() or (self._folder.location / LOCK).exists():
            return False
        before = self._of_before()
        return (
            list(before) == list(self._batches)
            and all(starmap(self._is_whole, before.items()))
            and self._folder.wanted <= self._folder.there
        )

    def records(self) -> list[dict[str, Any]]:
        """Return what the list of a finished run holds, a record for each image."""
        content = (self._folder.location / PREDICTIONS).read_bytes()
        return [json.loads(line) for line in content.splitlines()]

    def _of_before(self) -> dict[str, list[dict[str, Any]]]:
        """Return the records of a finished run by batch; empty where there is none."""
        found: dict[str, list[dict[str, Any]]] = {}
        if PREDICTIONS in self._folder.there:
            try:
                for record in self.records():
                    found.setdefault(str(record.pop("batch")), []).append(record)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return {}  # edited, or of a damaged disk
        return found

    def _is_whole(self, batch: str, records: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether a batch is one of this run, all was good, and every file is there."""
        images = self._batches.get(batch, ())
        if [record.get("image") for record in records] != [image.source for image in images]:
            return False
        files = (files_of(self._config, image.name) for image in images)
        return not any("error" in record for record in records) and all(
            self._folder.there.issuperset(of_image.values()) for of_image in files
        )

    @contextlib.contextmanager
    def begun(self) -> Iterator[Callable[[], None]]:
        """Keep other commands out of the output, and make it ready.

        What a killed process left half-written is removed, what a finished run has of this one is
        taken over, and no sign is left that all is complete. Notes of other settings are removed:
        this run may overwrite what they tell of.

        Yields
        ------
        callable
            `Hold.check`.

        Raises
        ------
        ConfigError, CocosegError
            See `OutputFolder.held`.
        """
        with self._folder.held("cocoseg infer") as hold:
            if hold.alone:
                self._notes.remove_half_written()
            self._notes.make_folder()  # it says "not complete" from now on
            self._folder.claim()
            self._notes.remove_files(self._noted() - {*map(_note, self._batches)})
            self._take_over()
            try:
                yield hold.check
            except BaseException:
                there = self._folder.location
                if not there.remote and there.exists():  # perhaps written to after it was removed
                    with contextlib.suppress(OSError):
                        self._folder.renew()
                raise

    def _take_over(self) -> None:
        before = self._of_before()
        if self._config.coco_json and not self._add_outlines(before):
            before = {}
        for batch, records in before.items():
            if self._is_whole(batch, records):
                self.publish(batch, records)
        (self._folder.location / PREDICTIONS).remove()

    def _add_outlines(self, before: Mapping[str, list[dict[str, Any]]]) -> bool:
        """Give the records of a finished run the outlines that its COCO result holds."""
        good = [one for records in before.values() for one in records if "error" not in one]
        try:
            content = (self._folder.location / COCO_JSON).read_json()
            by_id: dict[int, list[dict[str, Any]]] = {}
            for image, record in zip(content["images"], good, strict=True):
                record["segments"] = by_id[image["id"]] = []
            for one in content["annotations"]:
                by_id[one["image_id"]].append({key: one[key] for key in SEGMENT_KEYS})
        except (ConfigError, DataError, ValueError, KeyError, TypeError):
            return False  # removed, or of a damaged disk
        return True

    def done(self) -> set[str]:
        """Return the batches whose files are all there, and whose images were all good."""
        noted = self._noted()
        ours = [batch for batch in self._batches if _note(batch) in noted]
        return {batch for batch, records in self._read(ours) if self._is_whole(batch, records)}

    def _noted(self) -> set[str]:
        return set(self._notes.list_files())

    def renew(self) -> None:
        """Claim the files again, where the output was removed while it was written."""
        self._folder.renew()

    def publish(self, batch: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Note that a batch is done."""
        (self._notes / _note(batch)).publish_bytes(json.dumps(records).encode())

    def _read(self, batches: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the records of batches, in order; an object store is asked for many at once."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from zip(batches, pool.map(self._records, batches), strict=True)

    def _records(self, batch: str) -> list[dict[str, Any]]:
        try:
            records: list[dict[str, Any]] = (self._notes / _note(batch)).read_json()
        except (OSError, ConfigError, DataError):  # of a damaged disk, or removed: done again
            return []
        return records

    def finish(self, taxonomy: Taxonomy, check: Callable[[], None]) -> None:
        """Write the lists of all images, and remove the notes and what is left over.

        Parameters
        ----------
        check
            `Hold.check`.

        Raises
        ------
        DataError
            If no image could be read; all stays as it is then.
        CocosegError
            If the output was removed while it was written.
        """
        lines: list[str] = []
        bad: list[str] = []
        good: list[InputImage] = []
        good_records: list[dict[str, Any]] = []
        segments: list[list[dict[str, Any]]] = []
        removed = CocosegError(
            f"--output {self._folder.location}: was removed or changed while it was written; run "
            "the same command again"
        )
        if not (self._folder.location / SETTINGS).exists():
            raise removed
        for batch, records in self._read(list(self._batches)):
            if len(records) != len(self._batches[batch]):
                raise removed
            for image, record in zip(self._batches[batch], records, strict=True):
                found = record.pop("segments", [])
                lines.append(json.dumps({**record, "batch": batch}))
                if "error" in record:
                    bad.append(record["error"])
                    continue
                good.append(image)
                good_records.append(record)
                segments.append(found)
        if not good:
            raise DataError("no image could be read:\n  " + "\n  ".join(bad[:5]))
        check()
        if self._config.coco_json:
            with ThreadPoolExecutor(REQUESTS) as pool:
                entries = list(pool.map(InputImage.entry, good))
            content = coco_dataset(taxonomy, entries, good_records, segments)
            (self._folder.location / COCO_JSON).publish_bytes(json.dumps(content).encode())
        self._folder.settle(wanted_files(self._config, good))
        text = "".join(f"{line}\n" for line in lines)
        check()
        (self._folder.location / PREDICTIONS).publish_bytes(text.encode())
        self._notes.remove()


def _note(batch: str) -> str:
    return f"{batch}.json"
