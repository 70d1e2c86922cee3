"""What changed in the images since shards were made of them.

Annotations and settings are compared by the manifest (see `build_folder`); images by their
sizes, which costs a look at each, and those left out by trying them again.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ..errors import ConfigError
from ..shards.manifest import Index, Manifest, read_index
from ..shards.orientation import Orientation
from ..storage import Location
from .config import PrepareConfig
from .plan import BuildPlan, PlannedImage, image_task, sample_rules
from .sample import Quarantined, build_sample


def changed_photos(
    plan: BuildPlan, config: PrepareConfig, images: Mapping[str, PlannedImage], index: Index
) -> Iterator[str]:
    """Yield a sentence for each image whose size is another than that of its sample.

    Images that are gone are no matter: the shards hold them. Nor are those on object stores,
    where a look costs a request, and those that ``--max-side`` may have encoded again.
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
    rules = sample_rules(plan, config, Orientation(config.exif))
    for entry in quarantined:
        if entry.reason == "worker-died":  # it would die again
            continue
        image = images[entry.key]
        if not isinstance(build_sample(image_task(plan, image), rules), Quarantined):
            yield f"{entry.file_name}: was left out ({entry.reason}), is good now"


def refuse_changed_photos(
    plan: BuildPlan,
    config: PrepareConfig,
    folders: Sequence[Location],
    manifests: Sequence[Manifest],
    quarantined: Sequence[Sequence[Quarantined]],
) -> None:
    """Compare complete folders of shards, one for each split, with the images of today.

    Raises
    ------
    ConfigError
        If one is another now; names the first of them.
    """
    changes: list[str] = []
    for split, folder, manifest, left_out in zip(
        plan.splits, folders, manifests, quarantined, strict=True
    ):
        images = {image.key: image for image in split.images}
        changes += changed_photos(plan, config, images, read_index(folder, manifest))
        changes += mended_photos(plan, config, images, left_out)
    if changes:
        more = f"\n  … and {len(changes) - 8} more" if len(changes) > 8 else ""
        shown = "\n".join(f"  {change}" for change in changes[:8])
        raise ConfigError(
            f"--output {config.output}: is complete, but images changed since:\n{shown}{more}\n"
            "Choose another --output, or --overwrite that one."
        )
