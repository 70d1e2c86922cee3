"""What changed in the photographs since shards were made of them.

Annotations and settings are compared by the manifest (see `journal`); photographs by their sizes,
which costs a look at each, and those left out by trying them again.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ..errors import ConfigError
from ..shards.manifest import Index
from .config import PrepareConfig
from .orientation import Orientation
from .plan import BuildPlan, PlannedImage, image_task, sample_rules
from .sample import Quarantined, build_sample


def changed_photos(
    plan: BuildPlan, config: PrepareConfig, images: Mapping[str, PlannedImage], index: Index
) -> Iterator[str]:
    """Yield a sentence for each photograph whose size is another than that of its sample.

    Photographs that are gone are no matter: the shards hold them. Nor are those on object stores,
    where a look costs a request, and those that ``--max-side`` may have encoded anew.
    """
    if config.max_side is not None:
        return
    lengths = index.samples["lengths"][:, 0].tolist()
    for key, then in zip(index.samples["key"].tolist(), lengths, strict=True):
        image = images[key.decode()]
        store = plan.catalogs[image.source].store
        if image.name is None or not store.sizes_are_cheap:
            continue
        with contextlib.suppress(ConfigError, OSError):  # gone since it was looked up
            now = store.size(image.name)
            if now != then:
                yield f"{image.entry.file_name}: {then} bytes there, {now} now"


def mended_photos(
    plan: BuildPlan,
    config: PrepareConfig,
    images: Mapping[str, PlannedImage],
    quarantined: Sequence[Quarantined],
) -> Iterator[str]:
    """Yield a sentence for each image that was left out and is good now."""
    left_out = {(entry.source, entry.image_id): entry for entry in quarantined}
    rules = sample_rules(plan, config, Orientation(config.exif))
    for image in images.values():
        entry = left_out.get((image.source, image.entry.id))
        if entry is None or entry.reason == "worker-died":  # that one would die again
            continue
        if not isinstance(build_sample(image_task(plan, image), rules), Quarantined):
            yield f"{image.entry.file_name}: was left out ({entry.reason}), is good now"
