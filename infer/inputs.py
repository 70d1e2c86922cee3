"""What ``infer`` predicts: an image, the images below a folder, or the photographs in shards."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .. import photo, storage
from ..errors import ConfigError, DataError
from ..photo import SUFFIXES
from ..shards.config import ReadConfig
from ..shards.manifest import MANIFEST_NAME
from ..shards.reader import ShardSet

COLOR, OVERLAY = "color", "overlay"  # folders of the output that hold pictures for people


@dataclass(frozen=True, slots=True)
class InputImage:
    """One photograph to predict."""

    source: str
    """Where it comes from, for people."""
    name: str
    """Relative path of its mask, without the extension."""
    read: Callable[[], NDArray[np.uint8]]
    """Decodes it, upright: uint8 RGB, shape (H, W, 3). Raises `DataError`."""


def list_inputs(path: str, output: str, config: ReadConfig | None = None) -> list[InputImage]:
    """List the photographs of ``--input``, in a fixed order.

    Parameters
    ----------
    path
        An image file, a folder (searched recursively, `output` left out), or a folder of shards.
    output
        Folder of the masks.
    config
        How shards in an object store are read.

    Raises
    ------
    ConfigError
        If nothing is there, or two photographs would share a mask file, or a mask or picture would
        replace a photograph or land where the other belongs.
    """
    output = _resolved(output)
    if storage.is_dir(path):
        inputs = _folder(_resolved(path), output, config)
    elif storage.exists(path):
        inputs = [_file(_resolved(path), PurePosixPath(path).stem)]
    else:
        raise ConfigError(f"--input {path}: no such file or folder")
    _refuse_clashes(inputs, output)
    return inputs


def _resolved(url: str) -> str:
    """Return the one name of a path: absolute, links followed, no slash behind it."""
    return url.rstrip("/") if storage.is_remote(url) else os.path.realpath(storage.join(url))


def _folder(folder: str, output: str, config: ReadConfig | None) -> list[InputImage]:
    if folder == output:
        raise ConfigError(f"--output {output}: is the --input; give the masks their own folder")
    if storage.exists(storage.join(folder, MANIFEST_NAME)):
        return _samples(folder, config)
    below = f"{output}/".removeprefix(f"{folder}/")  # unchanged where it lies elsewhere
    inputs = [
        _file(storage.join(folder, name), str(PurePosixPath(name).with_suffix("")))
        for name in storage.walk_files(folder)
        if name.lower().endswith(SUFFIXES) and not name.startswith(below)
    ]
    if not inputs:
        raise ConfigError(f"--input {folder}: holds no image ({' '.join(SUFFIXES)})")
    return inputs


def _file(url: str, name: str) -> InputImage:
    def read() -> NDArray[np.uint8]:
        try:
            return photo.decode(storage.read_bytes(url))
        except OSError as error:
            raise DataError(f"{url}: {error.strerror or error}") from None
        except (ConfigError, DataError) as error:
            raise DataError(f"{url}: {error}") from None

    return InputImage(url, name, read)


def _samples(folder: str, config: ReadConfig | None) -> list[InputImage]:
    shards = ShardSet([folder], masks=False, config=config)

    def reader(position: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: shards.read_image(position)

    return [
        InputImage(f"{folder}: {key}", key, reader(position))
        for position in range(len(shards))
        if (key := shards.row(position).key)
    ]


def _refuse_clashes(inputs: list[InputImage], output: str) -> None:
    # All in lower case: names that differ in case alone are one file on macOS and Windows.
    photographs = {image.source.lower() for image in inputs}
    masks: dict[str, str] = {}
    for image in inputs:
        mask = storage.join(output, f"{image.name}.png")
        other = masks.setdefault(mask.lower(), image.source)
        if other != image.source:
            raise ConfigError(f"{other} and {image.source} would both become {mask}; rename one")
        pictures = (storage.join(output, kind, f"{image.name}.png") for kind in (COLOR, OVERLAY))
        for file in (mask, *pictures):
            if file.lower() in photographs:
                raise ConfigError(f"--output {output}: {file} is a photograph of --input")
        first = PurePosixPath(image.name).parts[0].lower()
        if first in (COLOR, OVERLAY) and "/" in image.name:
            raise ConfigError(
                f"{image.source}: its mask would land in {output}/{first}, which is for pictures; "
                "rename that folder"
            )
