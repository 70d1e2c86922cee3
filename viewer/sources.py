"""What each path is that ``cocoseg view`` was given: shards, predictions, or an evaluation."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, DataError
from ..results import Result
from ..shards.manifest import MANIFEST_NAME
from ..shards.reader import ShardSet
from ..shards.tarball import key_path
from ..storage import Location, last_parts, locate

_KINDS = (
    "a folder of shards (manifest.json), of an evaluation (metrics.json of 'cocoseg eval'), or of "
    "predictions (predictions.jsonl of 'cocoseg infer')"
)


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """What ``cocoseg eval`` wrote."""

    name: str
    """As the page shows it: the last two parts of its path."""
    folder: Location
    metrics: Mapping[str, Any]
    images: Sequence[Mapping[str, str]]
    """Rows of ``images.csv``."""
    image_classes: Sequence[Mapping[str, str]]
    image_confusions: Sequence[Mapping[str, str]]
    labels: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class PredictionFolder:
    """Predicted masks of samples, ``KEY.png``."""

    name: str
    folder: Location

    def mask(self, key: str) -> bytes:
        """Return the file of a sample's mask.

        Raises
        ------
        ConfigError
            If there is none.
        """
        return (self.folder / f"{key_path(key)}.png").read_bytes()


@dataclass(frozen=True, slots=True)
class Sources(Result):
    """All that is shown."""

    shards: ShardSet
    evaluations: tuple[EvaluationFiles, ...]
    predictions: tuple[PredictionFolder, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        return {
            "shards": list(self.shards.folders),
            "samples": len(self.shards),
            "evaluations": [one.folder.url for one in self.evaluations],
            "predictions": [one.folder.url for one in self.predictions],
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
        If a path is none of these, or no shards are among them.
    DataError
        If a file is broken.
    """
    shards: list[str] = []
    evaluations: list[EvaluationFiles] = []
    predictions: list[PredictionFolder] = []
    for path in paths:
        place = locate(path)
        if (place / MANIFEST_NAME).exists():
            shards.append(path)
        elif (place / "metrics.json").exists():
            evaluations.append(_read_evaluation(place))
            if (place / "predictions").is_dir():
                name = f"{last_parts(place)}/predictions"
                predictions.append(PredictionFolder(name, place / "predictions"))
        elif (place / "predictions.jsonl").exists():
            predictions.append(PredictionFolder(last_parts(place), place))
        elif splits := [n for n in place.list_folders() if (place / n / MANIFEST_NAME).exists()]:
            shards += [str(place / name) for name in splits]
        elif not place.exists():
            raise ConfigError(f"{path}: no such folder")
        else:
            raise ConfigError(f"{path}: is not {_KINDS}")
    if not shards:
        raise ConfigError(f"give a folder of shards; a path may be {_KINDS}")
    return Sources(ShardSet(shards), tuple(evaluations), tuple(predictions))


def _read_evaluation(place: Location) -> EvaluationFiles:
    try:
        metrics = json.loads((place / "metrics.json").read_bytes())
    except ValueError as error:
        raise DataError(f"{place / 'metrics.json'}: is not JSON: {error}") from None
    names = ("images", "image_classes", "image_confusions", "labels")
    tables = [_read_csv(place / f"{name}.csv") for name in names]
    return EvaluationFiles(last_parts(place), place, metrics, *tables)


def _read_csv(file: Location) -> list[dict[str, str]]:
    """Return the rows of a table; none if an earlier version wrote no such file."""
    try:
        content = file.read_bytes()
    except ConfigError:
        return []
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))
