"""Shards of the golden data, and an evaluation of them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cocoseg.shards.png import encode_mask
from cocoseg.shards.reader import Sample, ShardSet
from starlette.testclient import TestClient
from view_client import IGNORE, client_of, erased


@pytest.fixture(scope="module")
def samples(golden: Any) -> list[Sample]:
    shards = ShardSet([str(golden.shards("train"))])
    return [shards.read(position) for position in range(len(shards))]


@pytest.fixture(scope="module")
def names(golden: Any) -> Sequence[str]:
    return ShardSet([str(golden.shards("train"))]).taxonomy.names


@pytest.fixture(scope="module")
def evaluation(
    samples: list[Sample],
    names: Sequence[str],
    golden: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder as `eval --save-predictions` writes it, of masks that are partly wrong."""
    folder = tmp_path_factory.mktemp("scores")
    rows: dict[str, list[list[object]]] = {
        "images": [["key", "file_name", "mIoU", "confidence", "label_quality"]],
        "image_classes": [["key", "train_id", "IoU"]],
        "image_confusions": [["key", "truth", "predicted", "pixels"]],
        "labels": [
            [
                *("suspicion", "key", "file_name", "kind", "annotated", "predicted", "pixels"),
                *("left", "top", "width", "height"),
            ]
        ],
    }
    (folder / "predictions").mkdir()
    for number, sample in enumerate(samples[:-1]):  # one is not scored
        predicted = sample.mask.copy()
        predicted[erased(number, sample)] = 0
        (folder / "predictions" / f"{sample.key}.png").write_bytes(encode_mask(predicted))
        scores = [0.9 - number / 10, 0.5 + (number * 3 % 7) / 20, number / 10]
        rows["images"].append([sample.key, f"photo {number}.jpg", *scores])
        for train_id in np.unique(sample.mask[sample.mask != IGNORE]):
            union = (sample.mask == train_id) | (predicted == train_id)
            hits = (sample.mask == train_id) & (predicted == train_id)
            rows["image_classes"].append([sample.key, train_id, hits.sum() / union.sum()])
            lost = int((sample.mask == train_id).sum() - hits.sum())
            if train_id and lost:
                pair = [names[train_id], names[0]]
                rows["image_confusions"].append([sample.key, *pair, lost])
    place = [9, 2, 3, 3, 3]
    for suspicion, i, kind, pair in (
        (0.75, 4, "missing object", names[:2]),
        (0.25, 2, "wrong class", names[1::-1]),
    ):
        rows["labels"].append([suspicion, samples[i].key, "photo.jpg", kind, *pair, *place])
    for name, table in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)
    scored = {"mIoU": 0.5, "shards": [str(golden.shards("train"))]}
    classes = [{"name": name, "IoU": 0.5, "pixels": 100} for name in names]
    (folder / "metrics.json").write_text(json.dumps({**scored, "classes": classes}))
    return folder


@pytest.fixture(scope="module")
def client(golden: Any, evaluation: Path) -> TestClient:
    return client_of(str(golden.shards("train")), str(evaluation))
