"""What each path is that ``cocoseg view`` was given: shards, predictions, a run, or another."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.layout import METRICS
from ..errors import ConfigError, DataError
from ..photo import is_image_name
from ..results import Result
from ..shards.config import ReadConfig
from ..shards.manifest import MANIFEST_NAME
from ..shards.reader import ShardSet
from ..shards.tarball import key_path
from ..storage import LocalPath, Location, last_parts, locate

_KINDS = (
    "a folder of shards (manifest.json), of an evaluation (metrics.json of 'cocoseg eval'), of "
    "predictions (predictions.jsonl of 'cocoseg infer'), a run (metrics.jsonl of 'cocoseg train'), "
    "or a folder of images"
)


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """What ``cocoseg eval`` wrote."""

    name: str
    """As the page shows it: the last two parts of its path."""
    folder: Location
    metrics: Mapping[str, Any]
    prediction: int | None
    """Which of the predictions are its own."""

    def rows(self, table: str) -> Iterator[Mapping[str, str]]:
        """Yield the rows of ``TABLE.csv``; none if an earlier version wrote no such file.

        Raises
        ------
        DataError
            If it is not text.
        """
        file = self.folder / f"{table}.csv"
        try:
            content = file.read_bytes().decode()
        except ConfigError:
            return
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: is not UTF-8: {error}") from None
        yield from csv.DictReader(io.StringIO(content, newline=""))


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Pictures below a folder: predicted masks of samples, ``KEY.png``, or images."""

    name: str
    folder: Location

    def read(self, name: str, at_most: int) -> bytes:
        """Return a file below the folder.

        Raises
        ------
        ConfigError
            If there is none.
        DataError
            If it is larger than `at_most` [bytes], or a link that leads out of the folder.
        """
        file = self.folder / key_path(name)
        if isinstance(file, LocalPath) and isinstance(self.folder, LocalPath):
            refuse_outer(self.folder, file)
        return file.read_bytes(at_most)


@dataclass(frozen=True, slots=True)
class Sources(Result):
    """All that is shown."""

    shards: ShardSet | None
    evaluations: tuple[EvaluationFiles, ...]
    predictions: tuple[PictureFolder, ...]
    runs: tuple[PictureFolder, ...]
    images: tuple[PictureFolder, ...]
    """For the pictures of images that `prepare` left out."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        return {
            "shards": [] if self.shards is None else list(self.shards.folders),
            "samples": 0 if self.shards is None else len(self.shards),
            "evaluations": [one.folder.url for one in self.evaluations],
            "predictions": [one.folder.url for one in self.predictions],
            "runs": [one.folder.url for one in self.runs],
            "images": [one.folder.url for one in self.images],
        }


def open_sources(paths: Sequence[str]) -> Sources:
    """Find out what each path is, and open it.

    Parameters
    ----------
    paths
        Local paths or URLs, in any order.

    Raises
    ------
    ConfigError
        If a path is none of these.
    DataError
        If a file is broken.
    """
    shards: list[str] = []
    evaluations: list[EvaluationFiles] = []
    predictions: list[PictureFolder] = []
    runs: list[PictureFolder] = []
    images: list[PictureFolder] = []
    for path in paths:
        place = locate(path)
        there = place.present([MANIFEST_NAME, "metrics.json", METRICS, "predictions.jsonl"])
        if MANIFEST_NAME in there:
            shards.append(path)
        elif "metrics.json" in there:
            own = (place / "predictions").is_dir()
            evaluations.append(_read_evaluation(place, len(predictions) if own else None))
            if own:
                predictions.append(PictureFolder(last_parts(place), place / "predictions"))
        elif METRICS in there:
            runs.append(PictureFolder(last_parts(place), place))
        elif "predictions.jsonl" in there:
            predictions.append(PictureFolder(last_parts(place), place))
        elif splits := [n for n in place.list_folders() if (place / n / MANIFEST_NAME).exists()]:
            shards += [str(place / name) for name in splits]
        elif any(map(is_image_name, place.list_files())):
            images.append(PictureFolder(last_parts(place), place))
        elif not place.exists():
            raise ConfigError(f"{path}: no such folder")
        else:
            raise ConfigError(f"{path}: is not {_KINDS}")
    opened = ShardSet(shards, config=ReadConfig(remote="range")) if shards else None
    return Sources(opened, *map(tuple, (evaluations, predictions, runs, images)))  # type: ignore[arg-type]


def refuse_outer(folder: LocalPath, file: LocalPath) -> None:
    """Refuse a file that lies elsewhere, once links are followed.

    Raises
    ------
    DataError
        If it does.
    """
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(file)]) != root:
        raise DataError(f"{file}: leads out of {folder}")


def _read_evaluation(place: Location, prediction: int | None) -> EvaluationFiles:
    metrics = (place / "metrics.json").read_json()
    if not isinstance(metrics, dict):
        raise DataError(f"{place / 'metrics.json'}: is not of 'cocoseg eval'")
    return EvaluationFiles(last_parts(place), place, metrics, prediction)
