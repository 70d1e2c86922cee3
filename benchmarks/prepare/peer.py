"""One peer's own way from COCO to semantic masks, under a Python that has the peer installed.

    python peer.py NAME ROOT OUTPUT

`ROOT` is laid out as COCO: ``annotations/instances_train2017.json``, ``images/train2017``. Prints
version and CPU seconds, imports left out, as JSON in its last line. None of them packs shards or
checks photographs; where a peer stops at masks in memory, Pillow writes them.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Run = Callable[[Path, Path], Any]


def datumaro() -> Run:
    """Run `datum convert -if coco_instances -f voc_segmentation -- --save-media`, in Python."""
    from datumaro.components.dataset import Dataset

    def run(root: Path, output: Path) -> None:
        dataset = Dataset.import_from(str(root), "coco_instances")
        dataset.transform("polygons_to_masks")
        dataset.export(str(output), "voc_segmentation", save_media=True)

    return run


def ultralytics() -> Run:
    """Run `convert_coco(use_segments=True)`, and paint as its semantic data set does.

    No crowds; polygons by cv2.fillPoly, joined parts by a line: other masks than COCO's.
    """
    from PIL import Image
    from ultralytics.data.converter import convert_coco
    from ultralytics.data.dataset import PolygonSemanticDataset
    from ultralytics.data.utils import add_polygon_background

    def run(root: Path, output: Path) -> None:
        convert_coco(str(root / "annotations"), str(output), use_segments=True)
        (output / "images" / "train2017").symlink_to(root / "images" / "train2017")
        names = {i: str(i) for i in range(80)}
        data = add_polygon_background({"names": names, "nc": 80, "channels": 3})
        masks = PolygonSemanticDataset(
            str(output / "images" / "train2017"), data=data, task="semantic", augment=False
        )
        (output / "masks").mkdir()
        for i, label in enumerate(masks.labels):
            name = Path(label["im_file"]).with_suffix(".png").name
            mask = masks.load_mask(i, image_shape=label["shape"])
            Image.fromarray(mask).save(output / "masks" / name)

    return run


def supervision() -> Run:
    """Load `DetectionDataset.from_coco(force_masks=True)`, and paint by class."""
    import numpy as np
    import supervision as sv
    from PIL import Image

    def run(root: Path, output: Path) -> None:
        dataset = sv.DetectionDataset.from_coco(
            str(root / "images" / "train2017"),
            str(root / "annotations" / "instances_train2017.json"),
            force_masks=True,
        )
        output.mkdir()
        for path, found in dataset.annotations.items():
            if found.mask is None or not len(found):
                continue
            canvas = np.zeros(found.mask.shape[1:], np.uint8)
            for i in np.argsort(-found.area):
                canvas[found.mask[i]] = found.class_id[i] + 1
            Image.fromarray(canvas).save(output / f"{Path(path).stem}.png")

    return run


def torchvision() -> Run:
    """Do what ``references/segmentation/coco_utils.py`` does, written again: no wheel holds it.

    The photograph is not decoded, which `CocoDetection` would do.
    """
    import torch
    from PIL import Image
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    def paint(coco: COCO, image: dict[str, Any]) -> torch.Tensor:
        height, width = image["height"], image["width"]
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        if not found:
            return torch.zeros((height, width), dtype=torch.uint8)
        layers = []
        for one in found:
            decoded = coco_mask.decode(coco_mask.frPyObjects(one["segmentation"], height, width))
            decoded = decoded if decoded.ndim == 3 else decoded[..., None]
            layers.append(torch.as_tensor(decoded, dtype=torch.uint8).any(dim=2))
        masks = torch.stack(layers, dim=0)
        categories = torch.as_tensor([one["category_id"] for one in found], dtype=masks.dtype)
        target, _ = (masks * categories[:, None, None]).max(dim=0)
        target[masks.sum(0) > 1] = 255
        return target

    def run(root: Path, output: Path) -> None:
        coco = COCO(str(root / "annotations" / "instances_train2017.json"))
        output.mkdir()
        for image in coco.loadImgs(coco.getImgIds()):
            mask = Image.fromarray(paint(coco, image).numpy())
            mask.save((output / image["file_name"]).with_suffix(".png"))

    return run


PEERS = {
    "datumaro": datumaro,
    "ultralytics": ultralytics,
    "supervision": supervision,
    "torchvision": torchvision,
}


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    name, root, output = sys.argv[1:]
    os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(output).parent / "yolo"))
    run = PEERS[name]()
    start = _cpu()
    run(Path(root), Path(output))
    print("\n" + json.dumps({"cpu": _cpu() - start, "version": version(name)}))
