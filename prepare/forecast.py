"""What a build will need and meet: from the plan, and from a few images tried at once."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CocosegError, ConfigError, DataError
from ..figures import bytes_text, time_text
from ..processes import available_cores
from ..results import Result
from ..shards.manifest import Manifest
from ..shards.orientation import Orientation
from ..storage import locate
from ..storage.output import is_unfinished
from . import build_folder
from .config import PrepareConfig
from .plan import BuildPlan, PlannedImage, image_task, refuse_wrong_folders, sample_rules
from .publish import draft_manifest
from .sample import Quarantined, build_sample

_TRIED = 200  # images: a fifth of a second, and the mean of their sizes is good to some percent
_WEIGHED = 500
_BESIDE = 2500  # bytes of a sample beside photo and mask: JSON, tar headers, padding
_TAR_END = 1024 + 10240 // 2  # bytes: two empty blocks, and the padding of the last record
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Forecast(Result):
    """What ``--dry-run`` prints."""

    plan: BuildPlan
    config: PrepareConfig
    tried: int
    """Images that were read, checked and painted to find out."""
    problems: tuple[Quarantined, ...]
    """Images that would be left out: all that the plan knows, and those found by trying."""
    bytes: int
    """Expected size of all shards [bytes]."""
    seconds: float
    """Expected time with the configured workers [s]."""
    free: int | None
    """Free space at the output [bytes]; None where nobody can tell."""
    refusal: CocosegError | None = None
    """What would end the run before its first shard, or leave it without any sample."""
    quarantined: int = 0
    """Images that the run would report as left out, as far as they are known."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is printed."""
        plan = self.plan
        content: dict[str, Any] = {"images": plan.images}
        if plan.labels is None:
            annotations = [
                len(plan.sources[image.source].instances.get(image.entry.id, ()))
                for split in plan.splits
                for image in split.images
            ]
            content["annotations"] = sum(annotations)
            content["images_without_annotations"] = annotations.count(0)
        else:
            content["masks"] = sum(source.annotations for source in plan.sources)
        content |= {
            "classes": list(plan.class_map.taxonomy.names),
            "shards": sum(split.shards for split in plan.splits),
            "bytes": self.bytes,
            "free_bytes": self.free,
            "seconds": round(self.seconds, 3),
            "tried": self.tried,
            "problems": dict(Counter(entry.reason for entry in self.problems)),
            "first_problems": [
                f"{entry.file_name}: {entry.reason}: {entry.detail}"
                for entry in self.problems[:_SHOWN]
            ],
        }
        if plan.splits[0].name:
            content["splits"] = {split.name: len(split.images) for split in plan.splits}
        if plan.left_out:
            content["left_out"] = dict(plan.left_out)
        if plan.notes():
            content["notes"] = list(plan.notes())
        return content

    def text(self) -> str:
        """Return what is printed for people."""
        content = self.to_dict()
        names = content["classes"]
        shown = ", ".join(names[:12]) + (f", … {len(names) - 12} more" if len(names) > 12 else "")
        free = "" if self.free is None else f", {bytes_text(self.free)} free"
        workers = self.config.workers or available_cores()
        counted = ("images", "masks", "annotations", "images_without_annotations")
        lines = [
            *((name.replace("_", " "), f"{content[name]}") for name in counted if name in content),
            ("classes", f"{len(names)}: {shown}"),
            ("shards", f"{content['shards']}, about {bytes_text(self.bytes)}{free}"),
            ("time", f"about {time_text(self.seconds)} with {workers} workers"),
        ]
        lines += [("split", f"{n} images: {name}") for name, n in content.get("splits", {}).items()]
        lines += [
            ("left out", f"{n} images: {why.replace('_', ' ')}")
            for why, n in content.get("left_out", {}).items()
        ]
        lines += [("note", note) for note in content.get("notes", [])]
        found = ", ".join(f"{n} {reason}" for reason, n in content["problems"].items())
        lines.append(("problems", f"{found or 'none'} ({self.tried} images were tried)"))
        lines += [("", problem) for problem in content["first_problems"]]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}} {text}" for name, text in lines)


def forecast(plan: BuildPlan, config: PrepareConfig) -> Forecast:
    """Try images from all over the data set, and conclude from them to all; nothing is written.

    Raises
    ------
    ConfigError, DataError
        If the run would refuse the image folders, or what the output holds.
    """
    complete = _complete(plan, config)
    if not complete:
        refuse_wrong_folders(plan)
    images = [image for split in plan.splits for image in split.images]
    known = [image for image in images if image.problem is not None]
    rules = sample_rules(plan, config, Orientation(config.exif))
    problems = [build_sample(image_task(plan, image), rules) for image in known]
    began, size, tried = time.perf_counter(), 0, 0
    for image in _spread([image for image in images if image.problem is None], _TRIED):
        made = build_sample(image_task(plan, image), rules)
        tried += 1
        if isinstance(made, Quarantined):
            problems.append(made)
        else:
            size += len(made.sample.photo) + len(made.sample.mask or b"") + _BESIDE
    seconds = time.perf_counter() - began
    bad = [entry for entry in problems if isinstance(entry, Quarantined)]
    share = (len(images) - len(known)) / max(tried, 1)
    workers = config.workers or available_cores()
    return Forecast(
        plan=plan,
        config=config,
        tried=tried,
        problems=tuple(bad),
        bytes=round(size * share) + _TAR_END * sum(split.shards for split in plan.splits),
        seconds=seconds * share / workers,
        free=locate(config.output).free_space() if config.output else None,
        refusal=None if complete else _refusal(plan, config, len(bad)),
        quarantined=sum(m.counts.get("quarantined", 0) for m in complete) if complete else len(bad),
    )


def _complete(plan: BuildPlan, config: PrepareConfig) -> list[Manifest]:
    """Return the manifests of a complete output; one of other inputs or settings is refused."""
    if config.output is None or config.overwrite:
        return []
    output = locate(config.output)
    if is_unfinished(output):
        return []
    folders = [output / split.name if split.name else output for split in plan.splits]
    return build_folder.finished(output, folders, draft_manifest(plan, config))


def _refusal(plan: BuildPlan, config: PrepareConfig, bad: int) -> CocosegError | None:
    if bad == plan.images:
        return DataError(f"all {bad} images are bad")
    try:
        if config.output is not None:
            refuse_full_disk(plan, config, 0)
    except CocosegError as error:
        return error
    return None


def refuse_full_disk(plan: BuildPlan, config: PrepareConfig, present: int) -> None:
    """Refuse to begin what the disk cannot hold; what ``--max-side`` shrinks nobody knows.

    Parameters
    ----------
    present
        Size of the shards that stand already [bytes].

    Raises
    ------
    CocosegError
        If much less space is free than the images take up.
    """
    output = locate(str(config.output))
    free = output.free_space() if config.max_side is None else None
    images = [image for split in plan.splits for image in split.images if image.name]
    weighed = list(_spread(images, _WEIGHED))
    if free is None or not weighed:
        return
    size = 0
    for image in weighed:
        with contextlib.suppress(ConfigError, OSError):  # the build tells which, and why
            size += plan.catalogs[image.source].store.size(str(image.name))
    need = size / len(weighed) * len(images) - present
    if 0.9 * need > free:  # the mean of a sample: do not refuse what may just fit
        raise CocosegError(
            f"--output {output}: the shards will take about {bytes_text(round(need))}, "
            f"{bytes_text(free)} are free; make room, or take fewer images (--limit, --max-side)"
        )


def _spread(images: Sequence[PlannedImage], count: int) -> Iterator[PlannedImage]:
    """Yield up to `count` images from all over."""
    step = max(1, len(images) // count)
    return itertools.islice(images, 0, step * count, step)
