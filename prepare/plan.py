"""What is decided before the first image is opened: classes, keys, splits, and every place.

annotations → classes → which images → keys → splits → the order of the shards
"""

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from ..errors import ConfigError, DataError
from ..figures import named_files
from ..photo import BadPhoto
from ..shards.config import parse_split
from ..shards.orientation import Orientation
from ..taxonomy import ClassMap, is_coco, resolve_classes
from .annotations import AnnotationFile, ImageEntry, is_blank, list_images, read_annotations
from .config import PrepareConfig
from .images import Catalog, ImageStore, open_store, other_names
from .label_images import label_classes, list_label_images
from .label_values import LabelValues
from .outlines import Instances, brief
from .rasterize import PaintRules
from .sample import ImageTask, SampleRules
from .selection import Selection


class PlannedImage(msgspec.Struct, frozen=True, gc=False):
    """One image and its place in the data set."""

    key: str
    source: int
    """Place of its annotation file on the command line."""
    entry: ImageEntry
    split: int
    name: str | None = None
    """Its path in the image folder, tar or zip; None where it cannot be found."""
    moved: str = ""
    """As what it is counted where it was not found under its ``file_name``: see `names`."""
    label_image: str | None = None
    """The path of its mask in the folder, tar or zip of masks."""
    problem: str | None = None
    detail: str = ""
    """The reason code, and the details, of what makes it useless already."""


_LONGEST_SIDE = 2**31 - 1  # what image formats can say [pixels]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One folder of shards."""

    name: str
    """Its folder below the output; empty where nothing is split."""
    images: tuple[PlannedImage, ...]
    """In the order of the shards."""
    shards: int


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that is decided before the first image is opened."""

    sources: tuple[AnnotationFile, ...]
    catalogs: tuple[Catalog, ...]
    mask_stores: tuple[ImageStore, ...]
    """Of label images; empty where annotations give the masks."""
    class_map: ClassMap
    labels: LabelValues | None
    """What the pixels of label images mean."""
    splits: tuple[SplitPlan, ...]
    samples_per_shard: int
    left_out: Counter[str]
    """Images that are not packed, and why: ``repeated``, ``skipped_empty``, ``not_listed``,
    ``beyond_limit``, ``without_mask``."""
    skipped: tuple[str, ...]
    """Files among images without annotations that are not images by their names."""
    ungrouped: int
    """Images whose names ``--group-by`` does not match: they go by their ids."""

    @property
    def images(self) -> int:
        """Images that will be packed or quarantined."""
        return sum(len(split.images) for split in self.splits)

    @property
    def labeled(self) -> bool:
        """Whether there are annotations, and so masks."""
        return self.sources[0].labeled

    def notes(self) -> tuple[str, ...]:
        """Return what was decided and may surprise, a sentence each."""
        notes = list(self.class_map.notes)
        if not self.labeled:
            notes.append("no annotations: the shards hold images without masks, for 'infer'")
        if self.skipped:
            notes.append(f"{named_files(self.skipped)} skipped: not images by their names")
        if self.left_out["without_mask"]:
            notes.append(f"{self.left_out['without_mask']} images have no mask: they are left out")
        if self.left_out["repeated"]:
            notes.append(
                f"{self.left_out['repeated']} images are in several annotation files (COCO's 2014 "
                "and 2017 share theirs): each is taken once, from the first"
            )
        if self.ungrouped:
            notes.append(f"--group-by does not match {self.ungrouped} file names")
        return tuple(notes)


def plan_build(config: PrepareConfig) -> BuildPlan:
    """Read the annotations and decide classes, keys, and the place of every image.

    Raises
    ------
    ConfigError, DataError
        See `read_annotations`, `open_store` and `resolve_classes`.
    """
    _check_pairs(config)
    for path in (*config.annotations, *config.masks, *config.images, str(config.output)):
        if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
            raise ConfigError(
                f"{path!r}: is not valid UTF-8; rename the file, or give a link to it"
            )
    if len(set(config.annotations)) < len(config.annotations):
        raise ConfigError("--annotations: one file is given twice")
    if config.group_by is not None and config.split is None:
        raise ConfigError("--group-by: says which images one --split may not part; there is none")
    stores = {url: open_store(url) for url in dict.fromkeys(config.images)}
    mask_stores = tuple(open_store(url, "--masks") for url in config.masks)
    without_mask, skipped = 0, list[str]()
    if config.annotations:
        sources = tuple(read_annotations(path) for path in config.annotations)
    elif config.masks:
        found = [
            list_label_images(stores[url], masks, config.image_suffix, config.mask_suffix)
            for url, masks in zip(config.images, mask_stores, strict=True)
        ]
        sources = tuple(source for source, _ in found)
        without_mask = sum(count for _, count in found)
    else:
        sources = tuple(list_images(stores[url]) for url in config.images)
        skipped = [name for store in stores.values() for name in other_names(store)]
    if len({source.labeled for source in sources}) > 1:
        without = next(source.name for source in sources if not source.labeled)
        raise ConfigError(
            f"--annotations: {without} has no annotations, others have: prepare it by itself"
        )
    _refuse_boxes_alone(config, sources)
    labels = None
    if config.masks:
        classes = label_classes(config.classes, config.mask_suffix, sources, mask_stores)
        class_map, labels = classes.class_map, classes.values
    else:
        class_map = resolve_classes(config.classes, [source.categories for source in sources])
    images, left_out = _choose(config, sources)
    left_out["without_mask"] = without_mask
    ungrouped = _ungrouped(config, images)
    by_url = {url: Catalog(store) for url, store in stores.items()}
    catalogs = tuple(by_url[url] for url in config.images)
    splits = tuple(
        _splits(config, _find(images, sources, catalogs, sized=bool(config.annotations)))
    )
    return BuildPlan(
        sources,
        catalogs,
        mask_stores,
        class_map,
        labels,
        splits,
        config.samples_per_shard,
        +left_out,
        tuple(skipped),
        ungrouped,
    )


def _check_pairs(config: PrepareConfig) -> None:
    if config.masks and config.annotations:
        raise ConfigError("--annotations and --masks: give one of them")
    if config.masks and config.skip_empty:
        raise ConfigError("--skip-empty: is for --annotations, not for --masks")
    if not config.masks and (config.image_suffix or config.mask_suffix):
        raise ConfigError("--image-suffix and --mask-suffix: are for --masks")
    if not config.images and not config.annotations:
        raise ConfigError(
            "--annotations: give a COCO JSON file and --images, its folder, tar or zip of images "
            "(or --masks, a folder of label PNGs; --images alone packs them without masks)"
        )
    for flag, paths in (("--annotations", config.annotations), ("--masks", config.masks)):
        if paths and len(paths) != len(config.images):
            raise ConfigError(
                f"{flag} and --images come in pairs: got {len(paths)} and {len(config.images)}"
            )


def _refuse_boxes_alone(config: PrepareConfig, sources: Sequence[AnnotationFile]) -> None:
    """Refuse files without any segmentation, unless they go with others and `boxes` allows it."""
    bare = [source for source in sources if source.annotations and not source.outlined]
    alone = len(bare) == sum(source.annotations > 0 for source in sources)
    if bare and (alone or config.boxes == "quarantine"):
        raise DataError(
            f"--annotations {bare[0].name}: none of its {bare[0].annotations} annotations has a "
            "segmentation: boxes alone give no masks (with other files, see --boxes)"
        )


def refuse_wrong_folders(plan: BuildPlan) -> None:
    """Refuse image folders in which no file of a source was found.

    Raises
    ------
    DataError
        Names the folder, and a name that was looked for in it.
    """
    by_source: dict[int, list[PlannedImage]] = defaultdict(list)
    for split in plan.splits:
        for image in split.images:
            by_source[image.source].append(image)
    for source, images in sorted(by_source.items()):
        if all(image.problem == "missing-file" for image in images):
            raise DataError(
                f"--images {plan.catalogs[source]}: none of the {len(images):,} file names in "
                f"{plan.sources[source].name} exists there, such as "
                f"{brief(images[0].entry.file_name)}; give the folder that holds these images"
            )


def image_task(plan: BuildPlan, image: PlannedImage) -> ImageTask:
    """Return what a worker needs of one image."""
    entry = image.entry
    instances, label_image = None, None
    if image.label_image is not None:
        label_image = plan.mask_stores[image.source].location(image.label_image)
    elif plan.labeled:
        instances = _instances(plan, image.source, entry.id)
    return ImageTask(
        key=image.key,
        source=image.source,
        image_id=entry.id,
        file_name=entry.file_name,
        location=plan.catalogs[image.source].store.location(image.name) if image.name else None,
        moved=image.moved,
        problem=image.problem,
        detail=image.detail,
        width=0 if image.problem else entry.width,
        height=0 if image.problem else entry.height,
        instances=instances,
        label_image=label_image,
    )


def sample_rules(plan: BuildPlan, config: PrepareConfig, facing: Orientation) -> SampleRules:
    """Return how samples are made, for all images alike."""
    class_map = plan.class_map
    ignore_index = class_map.taxonomy.ignore_index
    return SampleRules(
        PaintRules(config.overlap, config.crowd, ignore_index, class_map.priorities, config.boxes),
        plan.labels,
        facing,
        config.check_images == "full",
        config.max_side,
        config.jpeg_quality,
    )


def _instances(plan: BuildPlan, source: int, image_id: int) -> Instances:
    entries = plan.sources[source].instances.get(image_id, ())
    boxes = b""
    if any(is_blank(entry.segmentation) for entry in entries):
        found = plan.sources[source].boxes()[image_id]
        boxes = b",".join(b"[%b,%b]" % (entry.bbox, entry.area) for entry in found)
    train_ids = plan.class_map.train_ids[source]
    return Instances(
        tuple(entry.id for entry in entries),
        tuple(train_ids[entry.category_id] for entry in entries),
        tuple(bool(entry.iscrowd) for entry in entries),
        b"[" + b",".join(entry.segmentation for entry in entries) + b"]",
        b"[" + boxes + b"]",
    )


def _choose(
    config: PrepareConfig, sources: Sequence[AnnotationFile]
) -> tuple[list[PlannedImage], Counter[str]]:
    """Return the images to pack, in the order of the hash of their keys."""
    left_out: Counter[str] = Counter()
    repeated = _repeated(sources)
    split_of = _split_chooser(config)
    chosen = []
    for source, file in enumerate(sources):
        prefix = f"{source}-" if len(sources) > 1 else ""
        for entry in file.images:
            if (source, entry.id) in repeated:
                left_out["repeated"] += 1
            elif config.skip_empty and entry.id not in file.instances:
                left_out["skipped_empty"] += 1
            else:
                key = f"{prefix}{entry.id:012d}"
                chosen.append(PlannedImage(key, source, entry, split_of(entry)))
    if not chosen:
        raise DataError("no image is left to prepare: none has annotations (--skip-empty)")
    if config.only is not None:
        listed = Selection(config.only).choose([(image.key, image.entry) for image in chosen])
        left_out["not_listed"] += len(chosen) - len(listed)
        chosen = [image for image in chosen if image.key in listed]
    chosen.sort(key=lambda image: hashlib.sha256(image.key.encode()).digest())
    if config.limit is not None:
        left_out["beyond_limit"] += max(0, len(chosen) - config.limit)
        del chosen[config.limit :]
    return chosen, left_out


def _ungrouped(config: PrepareConfig, images: Sequence[PlannedImage]) -> int:
    if config.group_by is None:
        return 0
    split_of = _split_chooser(config)
    alone = sum(split_of.group(image.entry) is None for image in images)
    if alone == len(images):
        raise ConfigError(f"--group-by {config.group_by!r}: matches no file name")
    return alone


def _find(
    images: Sequence[PlannedImage],
    sources: Sequence[AnnotationFile],
    catalogs: Sequence[Catalog],
    sized: bool,
) -> list[PlannedImage]:
    """Look every name up. Images of one file are useless: each lacks the other's instances.

    But one that lies where the JSON says is no other's that was only looked for by its name.
    """
    found = []
    for image in images:
        if label := sources[image.source].label_images.get(image.entry.id):
            found.append(
                replace(
                    image,
                    name=label.image,
                    moved=label.moved,
                    label_image=label.mask,
                    problem=label.problem,
                    detail=label.detail,
                )
            )
            continue
        width, height = image.entry.width, image.entry.height
        try:
            if sized and not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
                raise BadPhoto("bad-size", f"annotated as {width} x {height}")
            name, moved = catalogs[image.source].find(image.entry.file_name)
        except BadPhoto as bad:
            found.append(replace(image, problem=bad.reason, detail=bad.detail))
        else:
            found.append(replace(image, name=name, moved=moved))
    files = [(catalogs[image.source].store.url, image.name) for image in found]
    users = Counter(file for file in files if file[1] is not None)
    owners = Counter(
        file for file, image in zip(files, found, strict=True) if image.name and not image.moved
    )
    if len(users) < len(found):
        for place, (image, file) in enumerate(zip(found, files, strict=True)):
            if users[file] > 1 and owners[file] == 1:
                if image.moved:
                    detail = f"no {image.entry.file_name!r}; {image.name!r} is another image's"
                    found[place] = replace(image, name=None, problem="missing-file", detail=detail)
            elif users[file] > 1:
                detail = (
                    f"{users[file]} images are this file: {image.name!r}; merge their annotations "
                    "into one JSON"
                )
                found[place] = replace(image, problem="shared-file", detail=detail)
    return found


def _splits(config: PrepareConfig, images: Sequence[PlannedImage]) -> Iterator[SplitPlan]:
    for number, name in enumerate(parse_split(config.split) if config.split else [""]):
        members = tuple(image for image in images if image.split == number)
        if not members:
            raise DataError(
                f"--split: no image falls into {name!r}; there are {len(images)} images"
            )
        yield SplitPlan(name, members, -(-len(members) // config.samples_per_shard))


def _split_chooser(config: PrepareConfig) -> "SplitChooser":
    fractions = parse_split(config.split) if config.split else {"": 1.0}
    return SplitChooser(
        tuple(itertools.accumulate(fractions.values())),
        re.compile(config.group_by) if config.group_by else None,
    )


@dataclass(frozen=True, slots=True)
class SplitChooser:
    """Deals images to splits by a hash, so that adding images moves no other."""

    ends: tuple[float, ...]
    """Cumulated fractions."""
    group_by: "re.Pattern[str] | None"

    def group(self, entry: ImageEntry) -> str | None:
        """Return what must stay together with an image; None if the pattern does not match."""
        match = self.group_by.search(entry.file_name) if self.group_by is not None else None
        if match is None:
            return None
        first = match.group(1) if match.groups() else None
        return match.group() if first is None else first

    def __call__(self, entry: ImageEntry) -> int:
        """Return the number of an image's split."""
        if len(self.ends) == 1:
            return 0
        # Images that no JSON describes are numbered by their names: one more would move the others.
        name = f"image {entry.id}" if entry.width else f"file {entry.file_name}"
        if (group := self.group(entry)) is not None:
            name = f"group {group}"
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        return next((i for i, end in enumerate(self.ends) if place < end), len(self.ends) - 1)


_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg")


def _repeated(sources: Sequence[AnnotationFile]) -> set[tuple[int, int]]:
    """Return (source, image id) of COCO's images that an earlier source has already.

    COCO's 2014 and 2017 sets are the same images under the same ids, in other splits. Other data
    sets count from 1 as well: only files with COCO's categories and names of its form are compared,
    and the address on Flickr, if there is one, must be the same.
    """
    seen: dict[int, ImageEntry] = {}
    repeated = set()
    coco = [(i, file) for i, file in enumerate(sources) if is_coco(file.categories)]
    for source, file in coco if len(coco) > 1 else ():
        for entry in file.images:
            match = _COCO_NAME.fullmatch(entry.file_name.rpartition("/")[2])
            if match is None or int(match.group(1)) != entry.id:
                continue
            first = seen.setdefault(entry.id, entry)
            if first is not entry and _same_picture(first, entry):
                repeated.add((source, entry.id))
    return repeated


def _same_picture(one: ImageEntry, other: ImageEntry) -> bool:
    return (one.width, one.height, one.flickr_url) == (
        other.width,
        other.height,
        other.flickr_url,
    )
