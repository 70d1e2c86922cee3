"""Paint and encode all masks in a process of its own.

    python -m prepare.masks plain|ours ROOT COUNT

Prints the CPU seconds of that alone, as JSON. In one process the plain way took 5.5 ms an image
before ours had run and 6.4 ms after: it must not be measured beside ours.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from measure import cpu_of

from .data import DataSet

_WARM = 50  # images


def plain_way(data: DataSet) -> Callable[[int], None]:
    """Return what paints and encodes so many masks as people do."""
    from . import plain

    coco = plain.load(data.annotations)
    ids = plain.train_ids(coco)
    images = coco.loadImgs(coco.getImgIds())

    def paint(count: int) -> None:
        for image in images[:count]:
            plain.encode(plain.paint(coco, image, ids))

    return paint


def our_way(data: DataSet) -> Callable[[int], None]:
    """Return what paints and encodes so many masks as `cocoseg prepare` does."""
    from cocoseg.prepare.plan import image_task, plan_build
    from cocoseg.prepare.rasterize import PaintRules, rasterize
    from cocoseg.shards.png import encode_mask

    from . import ours

    plan = plan_build(ours.config(data, data.root / "unused"))
    rules = PaintRules("area", "paint", plan.class_map.taxonomy.ignore_index)

    def paint(count: int) -> None:
        for image in plan.splits[0].images[:count]:
            task = image_task(plan, image)
            assert task.instances is not None
            encode_mask(rasterize(task.instances, task.width, task.height, rules).mask)

    return paint


if __name__ == "__main__":
    way, root, count = sys.argv[1:]
    data = DataSet(Path(root), int(count))
    run = plain_way(data) if way == "plain" else our_way(data)
    run(_WARM)
    print("\n" + json.dumps({"cpu": cpu_of(run, data.count)}))
