"""From annotations and images to folders of shards.

    annotations → plan (which image goes into which shard) → shards, in parallel → index, manifest

A killed build is continued by running it again: each finished shard leaves a record (see
`build_folder`) and is kept if its bytes still have the recorded digest.
"""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import CocosegError, ConfigError, DataError, Interrupted
from ..meter import Meter, ShowProgress
from ..processes import available_cores, warm_up
from ..shards.census import Census
from ..shards.manifest import Manifest, read_index
from ..shards.orientation import Orientation, majority
from ..storage import Location, locate
from ..storage.location import LOCK
from ..storage.output import explained, held, is_unfinished
from . import build_folder
from .changes import changed_photos, mended_photos, refuse_changed_photos
from .config import PrepareConfig
from .forecast import refuse_full_disk
from .plan import BuildPlan, image_task, plan_build, refuse_wrong_folders, sample_rules
from .publish import draft_manifest, publish
from .result import PreparedSplit, PrepareResult
from .sample import Quarantined
from .shard import BuiltShard, ShardTask, shard_name
from .workers import run_shards


def prepare_shards(config: PrepareConfig, progress: ShowProgress = False) -> PrepareResult:
    """Build the shards, or complete them, or find them complete.

    Parameters
    ----------
    config
        `images` and `output` must be set.
    progress
        How progress is shown; see `ShowProgress`.

    Raises
    ------
    ConfigError
        If something is missing, or `output` holds shards of other inputs or settings.
    DataError
        If the data set cannot be trusted, or no image of it can.
    Interrupted
        After Ctrl-C or SIGTERM; what is finished is kept.
    CocosegError
        If the disk is full or fails, or workers die again and again.
    """
    if config.output is None:
        raise ConfigError("--output: give a folder for the shards")
    with _signals() as signals:
        if config.engine == "local":
            warm_up(run_shards.__module__)  # while the annotations are read
        plan = plan_build(config)
        output = locate(config.output)
        folders = [output / split.name if split.name else output for split in plan.splits]
        draft = draft_manifest(plan, config)
        build = _Build(plan, config, output, folders, signals)

        def complete() -> list[Manifest]:
            return [] if config.overwrite else build_folder.finished(output, folders, draft)

        killed = is_unfinished(output) or (output / LOCK).exists()
        found = [] if killed else complete()
        manifests = found
        if not found:
            refuse_wrong_folders(plan)
            with _story_of_an_end(build, draft), held(output, "cocoseg prepare") as hold:
                found = manifests = complete()  # by a run that was killed just after
                if not found:
                    build_folder.begin(output, folders, draft, config.overwrite)
                    build.begun = True
                    built = build.run(progress)
                    build.refuse_useless(draft)
                    manifests = publish(plan, config, folders, built, draft, hold.check)
                build_folder.end(output)
        result = _result(output, plan, folders, manifests)
        if found:
            quarantined = [split.quarantined for split in result.splits]
            refuse_changed_photos(plan, config, folders, manifests, quarantined)
        return result


_SLOW = "larger images, slower storage, or other programs on these cores"


class _Build:
    """The shards of one output: what they are called, which stand, how the others are made."""

    def __init__(
        self,
        plan: BuildPlan,
        config: PrepareConfig,
        output: Location,
        folders: Sequence[Location],
        signals: "_Signals",
    ) -> None:
        self.plan, self.config, self.signals = plan, config, signals
        self.output, self.folders = output, folders
        self.shards = [
            (split, folder, number)
            for split, folder in zip(plan.splits, folders, strict=True)
            for number in range(split.shards)
        ]
        self.built: dict[int, BuiltShard] = {}
        self.begun = False

    def run(self, progress: ShowProgress) -> list[BuiltShard]:
        """Build what is missing and return all shards, in order."""
        names = [self._names(number) for number in range(len(self.shards))]
        files = [(folder / name, record) for folder, name, record in names]
        self.built = self._unchanged(build_folder.kept_shards(self.output, files))
        for folder in self.folders:
            folder.make_folder()
        refuse_full_disk(self.plan, self.config, sum(s.size for s in self.built.values()))
        with Meter("prepare", self.plan.images, "image", progress, slow=_SLOW) as meter:
            todo = [number for number in range(len(self.shards)) if number not in self.built]
            self._build(todo, Orientation(self.config.exif), meter)
            votes: Counter[str] = Counter()
            for shard in self.built.values():
                votes.update(shard.votes)
            facing = Orientation(self.config.exif, majority(votes))
            todo = [
                shard.number
                for shard in self.built.values()
                if shard.ambiguous and shard.assumed != facing.ambiguous
            ]
            self._build(sorted(todo), facing, meter)
        return [self.built[number] for number in range(len(self.shards))]

    def _unchanged(self, kept: Mapping[int, BuiltShard]) -> dict[int, BuiltShard]:
        """Leave out the shards whose images are others now."""
        images = {image.key: image for split in self.plan.splits for image in split.images}
        return {
            number: shard
            for number, shard in kept.items()
            if not any(changed_photos(self.plan, self.config, images, shard.index))
            and not any(mended_photos(self.plan, self.config, images, shard.quarantined))
        }

    def _build(self, todo: Sequence[int], facing: Orientation, meter: Meter) -> None:
        for number in todo:
            self.built.pop(number, None)
        tasks = (self._task(number, facing) for number in todo)
        workers = min(self.config.workers or available_cores(), len(todo))

        def show(done: int, bad: int) -> None:
            if self.signals.arrived:  # what is raised inside a destructor gets lost
                raise KeyboardInterrupt
            if not meter.shown:
                return
            finished = self.built.values()
            meter.note(bad=sum(len(shard.quarantined) for shard in finished) + bad)
            meter.reach(sum(_images_of(shard) for shard in finished) + done)

        shards = run_shards(tasks, workers, self.config.engine, show)
        with contextlib.closing(shards):  # type: ignore[type-var]
            for shard in shards:
                self.built[shard.number] = shard
                show(0, 0)

    def _names(self, number: int) -> tuple[Location, str, str]:
        """Return the folder, the file name, and the name of the record of a shard."""
        split, folder, local = self.shards[number]
        name = shard_name(local)
        return folder, name, build_folder.record_name(split.name, name)

    def _task(self, number: int, facing: Orientation) -> ShardTask:
        split, _, local = self.shards[number]
        folder, name, record = self._names(number)
        size = self.plan.samples_per_shard
        return ShardTask(
            number=number,
            folder=folder.url,
            name=name,
            building=build_folder.building_folder(self.output).url,
            record=record,
            images=tuple(
                image_task(self.plan, image)
                for image in split.images[local * size : (local + 1) * size]
            ),
            rules=sample_rules(self.plan, self.config, facing),
        )

    def refuse_useless(self, draft: Mapping[str, Any]) -> None:
        """Refuse to publish shards that hold nothing, or are no longer there.

        An output may be removed, or unmounted, under a build.
        """
        if not any(shard.samples for shard in self.built.values()):
            self._refuse_all_bad()
        sizes = {folder: folder.list_files() for folder in self.folders}
        for number, (_, folder, local) in enumerate(self.shards):
            name = shard_name(local)
            if sizes[folder].get(name) != self.built[number].size:
                _tidy(self, draft)
                raise CocosegError(
                    f"--output {self.output}: {folder / name} was changed or removed "
                    "while others were built: run the same command again"
                )

    def _refuse_all_bad(self) -> None:
        quarantined = [entry for shard in self.built.values() for entry in shard.quarantined]
        for split, folder, local in self.shards:
            (folder / shard_name(local)).remove()
            if split.name:
                folder.remove_if_empty()
        build_folder.end(self.output)
        first = "\n".join(f"  {q.file_name}: {q.reason}: {q.detail}" for q in quarantined[:3])
        raise DataError(
            f"all {len(quarantined)} images are bad; nothing was written. First:\n{first}"
        )


def _images_of(shard: BuiltShard) -> int:
    return shard.samples + len(shard.quarantined)


@dataclass(slots=True)
class _Signals:
    """Whether Ctrl-C or SIGTERM came."""

    arrived: bool = False


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Make SIGTERM what Ctrl-C is, and remember either."""
    signals = _Signals()

    def interrupt(*_: object) -> None:
        signals.arrived = True
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def _story_of_an_end(build: _Build, draft: Mapping[str, Any]) -> Iterator[None]:
    """Turn an end before the end into what was kept and how to resume."""
    with explained(build.output, lambda: _kept(build)):
        try:
            yield
        except KeyboardInterrupt:
            _tidy(build, draft)
            raise Interrupted(f"interrupted; {_kept(build)}: run the same command again") from None
        except OSError:
            _tidy(build, draft)
            raise


def _tidy(build: _Build, draft: Mapping[str, Any]) -> None:
    """Make good what an interrupt while tidying up, or an output that vanished, left undone."""
    with contextlib.suppress(OSError):
        for folder in (build.output, *build.folders, build_folder.building_folder(build.output)):
            folder.remove_half_written(pid=os.getpid())
        if build.begun:
            build_folder.renew_plan(build.output, build.folders, draft)


def _kept(build: _Build) -> str:
    kept = len(build.built)
    with contextlib.suppress(OSError):  # the output is gone
        kept = max(kept, build_folder.count_records(build.output))
    return f"{kept} of {len(build.shards)} shards are finished and kept"


def _result(
    output: Location, plan: BuildPlan, folders: Sequence[Location], manifests: Iterable[Manifest]
) -> PrepareResult:
    splits = tuple(
        PreparedSplit(split.name, folder.url, manifest, _read_quarantine(folder))
        for split, folder, manifest in zip(plan.splits, folders, manifests, strict=True)
    )
    if not plan.labeled:
        return PrepareResult(output.url, splits, plan.notes())
    indices = [read_index(locate(split.folder), split.manifest) for split in splits]
    taxonomy = plan.class_map.taxonomy
    census = Census.of(indices, taxonomy.num_classes)
    warnings = census.warnings(taxonomy, indices, absent_classes=False)  # these are in the table
    return PrepareResult(output.url, splits, plan.notes(), tuple(warnings))


def _read_quarantine(folder: Location) -> tuple[Quarantined, ...]:
    file = folder / build_folder.QUARANTINE
    if not file.exists():
        return ()
    lines = file.read_bytes().splitlines()
    return tuple(msgspec.json.decode(line, type=Quarantined) for line in lines)
