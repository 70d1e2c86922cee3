"""What ``infer`` predicts: images by name, folder, pattern or list, or images in shards."""

import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import photo
from ...errors import ConfigError, DataError
from ...figures import named_files
from ...photo import is_image_name, is_litter
from ...shards.config import ReadConfig
from ...shards.manifest import MANIFEST_NAME
from ...shards.reader import ShardSet
from ...shards.tarball import key_path
from ...storage import LocalPath, Location, locate, resolved, stamps
from ...storage.lists import read_list
from ...storage.location import LOCK
from ...storage.output import FILES, folders_of
from ..folder import (
    CLASSES,
    COCO_JSON,
    FOLDERS,
    PREDICTIONS,
    PROGRESS,
    SETTINGS,
    files_of_outputs,
    mask_file,
)

_RESERVED = {*FOLDERS, PROGRESS, PREDICTIONS, COCO_JSON, SETTINGS, CLASSES, FILES, LOCK}
"""What the output holds beside the masks, in lower case."""
_LISTS = (".txt", ".lst")
_DEEPEST_KEY = 3  # parts of the keys that lists of samples may name
_WILD = "*?["


@dataclass(frozen=True, slots=True)
class InputImage:
    """One image to predict."""

    source: str
    """Where it comes from, for people."""
    name: str
    """Relative path of its mask, without the extension."""
    read: Callable[[], tuple[NDArray[np.uint8], str]]
    """Decodes it, upright: uint8 RGB, shape (H, W, 3), and `photo.kind`. Raises `DataError`."""
    stamp: str = ""
    """Changes with its content, as far as that can be told without reading it."""
    read_meta: Callable[[], dict[str, Any]] | None = None
    """Reads the JSON of a sample."""

    def entry(self) -> tuple[str, int | None]:
        """Return its ``file_name`` and image id in COCO JSON.

        A sample has those that its shard records; a file the path below ``--input``, and no id.
        """
        if self.read_meta is None:
            return self.name + os.path.splitext(self.source)[1], None
        meta = self.read_meta()
        file_name, image_id = meta.get("file_name"), meta.get("image_id")
        return (
            file_name if isinstance(file_name, str) else self.name,
            image_id if type(image_id) is int else None,
        )


class ListedInputs(NamedTuple):
    """What ``--input`` contains."""

    images: list[InputImage]
    """In a fixed order."""
    skipped: list[str]
    """Files that are not images by their names, relative to a folder."""


def list_inputs(path: str, output: str, config: ReadConfig | None = None) -> ListedInputs:
    """List the images of ``--input``.

    Parameters
    ----------
    path
        An image file, a folder (searched recursively, outputs left out), a pattern with ``*``,
        ``**``, ``?`` or ``[…]`` (``[[]`` is a ``[``), a folder of shards, or a ``.txt`` file of one
        path a line (relative to it): of images, or ``SHARDS/KEY`` of samples.
    output
        Folder of the masks.
    config
        How shards in an object store are read.

    Raises
    ------
    ConfigError
        If nothing is there, or two images would share a mask file, or a mask or picture would
        replace an image or land where the other belongs.
    DataError
        If a folder cannot be listed.
    """
    output = resolved(output)
    try:
        listed = _inputs(locate(path), output, config)
    except OSError as error:
        raise DataError(f"--input {path}: cannot be listed: {error}") from None
    _refuse_clashes(listed.images, output)
    return listed


def _inputs(path: Location, output: str, config: ReadConfig | None) -> ListedInputs:
    if path.is_dir():
        return _folder(locate(resolved(path)), output, config)
    if path.exists():
        if path.name.lower().endswith(_LISTS):
            return ListedInputs(_listed(path, config), [])
        return ListedInputs(_files({resolved(path): PurePosixPath(path.name).stem}), [])
    if set(path.url) & set(_WILD):
        return ListedInputs(_matching(path.url, output), [])
    raise ConfigError(f"--input {path}: no such file or folder")


def _folder(folder: Location, output: str, config: ReadConfig | None) -> ListedInputs:
    if folder.url == output:
        raise ConfigError(f"--output {folder}: is the --input; give the masks their own folder")
    if (folder / MANIFEST_NAME).exists():
        return ListedInputs(_samples(folder, config), [])
    found = folder.walk_files(dangling=True)  # these will be listed as unreadable
    made = files_of_outputs(folder, found)
    theirs = [name for name in found if not (name in made or is_litter(name))]
    inputs = _below(folder, [name for name in theirs if is_image_name(name)], output)
    skipped = [name for name in theirs if not is_image_name(name)]
    if not inputs:
        instead = f", but {named_files(skipped)}" if skipped else ""
        raise ConfigError(f"--input {folder}: contains no image{instead}")
    return ListedInputs(inputs, skipped)


def _below(folder: Location, names: Sequence[str], output: str) -> list[InputImage]:
    """Return the images of such names, those below the output left out."""
    own = f"{output}/".removeprefix(f"{folder.url}/")  # unchanged where it lies elsewhere
    return _files(
        {
            (folder / name).url: os.path.splitext(name)[0]
            for name in names
            if not name.startswith(own)
        }
    )


def _matching(pattern: str, output: str) -> list[InputImage]:
    """Return the files that a pattern names; their masks are named from its first wildcard on."""
    first = min(pattern.index(sign) for sign in _WILD if sign in pattern)
    slash = pattern.rfind("/", 0, first)
    folder, rest = locate(pattern[: slash + 1] or "."), pattern[slash + 1 :]
    names = folder.glob_files(rest)
    if not names:
        raise ConfigError(f"--input {pattern}: matches no file")
    images = [name for name in names if not is_litter(name)]
    inputs = _below(locate(resolved(folder)), images, output)
    if not inputs:
        raise ConfigError(f"--input {pattern}: matches nothing but files of --output {output}")
    return inputs


def _listed(path: Location, config: ReadConfig | None) -> list[InputImage]:
    """Return the files or the samples that a list names.

    Masks of files are named below their common folder, those of samples by their keys.
    """
    here = os.path.dirname(os.path.realpath(path)) if isinstance(path, LocalPath) else ""
    lines = read_list(path, "--input")
    files = list(dict.fromkeys(_named(locate(line), here) for line in lines))
    if not files:
        raise ConfigError(f"--input {path}: lists no file")
    if any(not (file.remote or os.path.isabs(file.url)) for file in files):
        raise ConfigError(f"--input {path}: a list on an object store names files by their URLs")
    keys = _keys_of_samples(files)
    if keys:
        if sum(map(len, keys.values())) < len(files):
            raise ConfigError(f"--input {path}: lists image files and samples; make two lists")
        return [
            image
            for folder, of_folder in keys.items()
            for image in _samples(folder, config, of_folder)
        ]
    if len({file.remote for file in files}) > 1:
        raise ConfigError(
            f"--input {path}: lists files here and on an object store; make two lists"
        )
    parents = [str(file).split("/")[:-1] for file in files]
    alike = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    common = len(list(alike))
    return _files(
        {file.url: os.path.splitext("/".join(str(file).split("/")[common:]))[0] for file in files}
    )


def _keys_of_samples(files: Sequence[Location]) -> dict[Location, list[str]]:
    """Return the keys that paths ``SHARDS/KEY`` name, by their folders of shards."""
    is_shards = functools.cache(lambda folder: (folder / MANIFEST_NAME).exists())
    found = defaultdict[Location, list[str]](list)
    for file in files:
        folder = file
        for _ in range(0 if is_image_name(file.name) else _DEEPEST_KEY):
            folder = folder.parent
            if not folder.name or folder.url.endswith("/"):
                break  # a root, or an object store
            if is_shards(folder):
                found[folder].append(file.url.removeprefix(f"{folder.url}/"))
                break
    return found


def _named(line: Location, here: str) -> Location:
    return line if line.remote else locate(os.path.normpath(os.path.join(here, line.url)))


def _files(names: Mapping[str, str]) -> list[InputImage]:
    """Return images of their own files, by URL, and the names of their masks."""
    files = list(map(locate, names))
    return [
        InputImage(str(file), name, partial(_read, file), stamp)
        for file, name, stamp in zip(files, names.values(), stamps(files), strict=True)
    ]


def _read(url: Location) -> tuple[NDArray[np.uint8], str]:
    try:
        content = url.read_bytes(photo.MAX_BYTES)
    except OSError as error:
        raise DataError(f"{url}: {error.strerror or error}") from None
    except ConfigError as error:  # it is not there, or a folder
        raise DataError(str(error)) from None
    except DataError as error:
        raise DataError(f"{url}: {error}") from None
    try:
        return photo.decode(content), photo.kind(content)
    except DataError as error:
        raise DataError(f"{url}: {error}") from None


def _samples(
    folder: Location, config: ReadConfig | None, keys: Sequence[str] | None = None
) -> list[InputImage]:
    """Return all samples of a folder of shards, or those of some keys."""
    shards = ShardSet([folder.url], masks=False, config=config)
    wanted = None if keys is None else set(keys)
    inputs = []
    for position in range(len(shards)):
        row = shards.row(position)
        if wanted is not None:
            if key_path(row.key) not in wanted:
                continue
            wanted.remove(key_path(row.key))
        read = partial(_read_sample, shards, position)
        inputs.append(
            InputImage(
                f"{folder}: {row.key}",
                key_path(row.key),
                read,
                row.digests[0].hex(),
                partial(shards.read_meta, position),
            )
        )
    if wanted:
        raise ConfigError(f"--input: {folder} has no sample {min(wanted)}")
    return inputs


def _read_sample(shards: ShardSet, position: int) -> tuple[NDArray[np.uint8], str]:
    return shards.read_image(position), ""


def _refuse_clashes(inputs: Sequence[InputImage], output: str) -> None:
    # All in lower case: names that differ in case alone are one file on macOS and Windows.
    masks: dict[str, InputImage] = {}
    for image in inputs:
        mask = mask_file(image.name)
        other = masks.setdefault(mask.lower(), image)
        if other is not image:
            raise ConfigError(
                f"{other.source} and {image.source} would both become {output}/{mask}; rename one"
            )
        first, slash, _ = image.name.partition("/")
        if image.name in ("", "."):
            raise ConfigError(f"--input: {image.source} is not an image file")
        if image.name.startswith("/") or ".." in image.name.split("/"):
            raise ConfigError(f"{image.source}: its mask would land outside of {output}")
        if slash and first.lower() in _RESERVED:
            raise ConfigError(
                f"{image.source}: its mask would land in {output}/{first}, which is the name of "
                "something else there; rename that folder"
            )
    _refuse_overwriting(inputs, output, masks)
    for folder in sorted(folders_of(masks) & masks.keys()):
        below = next(image for mask, image in masks.items() if mask.startswith(f"{folder}/"))
        raise ConfigError(
            f"{masks[folder].source} would become {output}/{folder}, and "
            f"{below.source} would need a folder of that name; rename one"
        )


def _refuse_overwriting(
    inputs: Sequence[InputImage], output: str, masks: Mapping[str, InputImage]
) -> None:
    inside = f"{output}/".lower()
    for image in inputs:
        if image.source.lower().startswith(inside):
            file = image.source.lower().removeprefix(inside)
            first, _, rest = file.partition("/")
            if file in masks or (first in FOLDERS and rest in masks):
                raise ConfigError(f"--output {output}: {image.source} is an image of --input")
