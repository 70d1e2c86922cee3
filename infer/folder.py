"""An output folder: which of its files are ours, so that none of others is replaced or removed.

    OUTPUT/.files.json   {"of": "inference", "input": …, "files": […]}: all files that may have been
                         written; there before the first of them

What an earlier run of the same kind wrote, and this one does not, is removed at its end.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from .. import storage
from ..config import parse_yaml, to_yaml
from ..errors import CocosegError, ConfigError
from ..model.config import COMPUTATION_KEYS, ModelConfig
from ..model.weights import is_bare
from .config import InferConfig

log = logging.getLogger(__name__)

FILES, SETTINGS = ".files.json", "config.yaml"
PREDICTIONS, COCO_JSON = "predictions.jsonl", "coco.json"
FOLDERS = ("color", "overlay", "confidence", "probabilities")
"""Folders of an inference for everything but masks."""
PROGRESS = ".progress"
"""Folder of an inference for what is done so far."""
Kind = Literal["inference", "evaluation"]


class OutputFolder:
    """Which of the files that are wanted in a folder are there, as of now, and which are ours.

    Parameters
    ----------
    url
        Local path or URL; it need not be there.
    kind
        What writes: files of another kind are not ours.
    wanted
        Relative paths of all that will be written.
    source
        What is read; the files of a run of another source are not removed lightly.
    """

    def __init__(self, url: str, kind: Kind, wanted: Iterable[str], source: str = "") -> None:
        self.url = url
        self.wanted = frozenset(wanted)
        self._kind = kind
        self._source = source
        self._ours, self._source_before = self._recorded()
        self._folders = folders_of(self.wanted)
        self.there = storage.present(url, {*self.wanted, *self._ours, *self._folders, FILES})
        """Those that are wanted, or ours, and there; also the folders that they are wanted in."""

    def _recorded(self) -> tuple[frozenset[str], str]:
        content = _read_ledger(storage.join(self.url, FILES))
        if content.get("of") != self._kind:
            return frozenset(), self._source
        return frozenset(content["files"]), content["input"]

    def again(self) -> "OutputFolder":
        """Look at it once more."""
        return OutputFolder(self.url, self._kind, self.wanted, self._source)

    def refuse_strangers(self) -> None:
        """Make sure that files can be written, and none is replaced that is not ours.

        Raises
        ------
        ConfigError
            If one would be, or a file is where a folder is needed, or a folder where a file is.
        """
        if storage.is_file(self.url):
            raise ConfigError(f"--output {self.url}: is a file, expected a folder")
        ledger = {FILES} if self._ours else set()
        for name in sorted((self.there - self._ours - ledger) & {*self.wanted, FILES}):
            if storage.is_dir(storage.join(self.url, name)):
                raise ConfigError(f"--output {self.url}: {name} is a folder, and would be a file")
            raise ConfigError(
                f"--output {self.url}: {name} is there, and not of an {self._kind}, as far as "
                f"{FILES} tells; choose a folder of its own"
            )
        for name in sorted(self.there & self._folders):
            if not storage.is_dir(storage.join(self.url, name)):
                raise ConfigError(f"--output {self.url}: {name} is a file, and would be a folder")

    def refuse_loss(self) -> None:
        """Make sure that `settle` removes no masks of a run of another source.

        Raises
        ------
        ConfigError
            If it would. Masks of the same source, whose photographs are gone, may go, too.
        """
        if self._source == self._source_before:
            return
        masks = sorted(
            name
            for name in (self._ours & self.there) - self.wanted
            if name.endswith(".png") and name.partition("/")[0] not in FOLDERS
        )
        if masks:
            more = f" and {len(masks) - 1:,} more" * (len(masks) > 1)
            raise ConfigError(
                f"--output {self.url}: holds masks of another --input, {self._source_before}, and "
                f"they would be removed: {masks[0]}{more}; choose a folder of its own"
            )

    def claim(self) -> None:
        """Note, before the first is written, which files will be ours, too."""
        self._record(self._ours | self.wanted)

    def tidy_up(self) -> None:
        """Remove what a killed run left half-written in a local folder."""
        for folder in ("", *self._folders.union(folders_of(self._ours))):
            storage.remove_half_written(storage.join(self.url, folder))

    def settle(self, written: Iterable[str]) -> None:
        """Remove what an earlier run left, once all is there that this one could write."""
        ours = frozenset(written)
        left_over = sorted((self._ours - ours) & self.there)
        if left_over:
            log.info("%s: %d files of an earlier run are removed", self.url, len(left_over))
        storage.remove_files(self.url, left_over)
        self._record(ours)

    def _record(self, files: frozenset[str]) -> None:
        if (files, self._source) != (self._ours, self._source_before):
            content = {"of": self._kind, "input": self._source, "files": sorted(files)}
            text = json.dumps(content, indent=0)
            storage.publish_bytes(storage.join(self.url, FILES), text.encode())
        self._ours, self._source_before = files, self._source


def files_of_outputs(folder: str, names: Iterable[str]) -> set[str]:
    """Return the files that outputs within a folder account for as theirs.

    Parameters
    ----------
    folder
        Local path or URL.
    names
        Relative paths of all files below it.
    """
    found: set[str] = set()
    for name in names:
        inner, _, last = name.rpartition("/")
        if last == FILES and inner:
            files = _read_ledger(storage.join(folder, name)).get("files", ())
            found |= {f"{inner}/{file}" for file in files}
    return found


def _read_ledger(url: str) -> dict[str, Any]:
    """Return what an output's hidden list holds; empty where there is none of ours.

    Files of the list may be removed: one that leads out of the folder is nobody's.
    """
    try:
        content = json.loads(storage.read_bytes(url))
        kinds = {"of": str, "input": str, "files": list}
        whole = all(isinstance(content[key], kind) for key, kind in kinds.items())
        return content if whole and all(map(storage.is_inner, content["files"])) else {}
    except (OSError, ConfigError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def folders_of(files: Iterable[str]) -> set[str]:
    """Return all folders that relative paths lead through."""
    found: set[str] = set()
    for file in files:
        folder = file.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
    """Say in plain words why something could not be written.

    Raises
    ------
    CocosegError
        In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise CocosegError(
            f"--output {folder}: cannot be written: {error.strerror or error}; mend that, then run "
            "the same command again"
        ) from None


def used_settings(config: InferConfig, model: ModelConfig) -> str:
    """Return the content of config.yaml: of the ``model`` section what had an effect.

    A bare file of weights needs all of it; any other checkpoint brings its own sizes and classes,
    and masks that are scored need none of it.
    """
    if config.checkpoint is None:
        return to_yaml({"infer": config})
    only = {} if is_bare(config.checkpoint) else {"model": COMPUTATION_KEYS}
    return to_yaml({"model": model, "infer": config}, only)


def recorded_settings(folder: str) -> dict[str, Any]:
    """Return the ``infer`` section of a folder's config.yaml; empty where it has none."""
    url = storage.join(folder, SETTINGS)
    if not storage.is_file(url):
        return {}
    try:
        found = parse_yaml(storage.read_bytes(url))["infer"]
    except (ConfigError, KeyError, TypeError):  # another program's
        return {}
    return found if isinstance(found, dict) else {}
