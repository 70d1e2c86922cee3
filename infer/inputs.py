"""What ``infer`` predicts: an image, the images below a folder, or the photographs in shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .. import photo, storage
from ..errors import ConfigError, DataError
from ..shards.manifest import MANIFEST_NAME
from ..shards.reader import ShardSet

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
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


def list_inputs(path: str, output: str) -> list[InputImage]:
    """List the photographs of ``--input``, in a fixed order.

    Parameters
    ----------
    path
        An image file, a folder (searched recursively, `output` left out), or a folder of shards.
    output
        Folder of the masks.

    Raises
    ------
    ConfigError
        If nothing is there, or two photographs would share a mask file, or a mask would replace a
        photograph or land among the pictures.
    """
    if not storage.exists(path) and not storage.is_dir(path):
        raise ConfigError(f"--input {path}: no such file or folder")
    if not storage.is_dir(path):
        inputs = [_file(path, PurePosixPath(path).stem)]
    elif storage.exists(storage.join(path, MANIFEST_NAME)):
        inputs = _samples(path)
    else:
        below = output.removeprefix(path.rstrip("/") + "/")
        inputs = [
            _file(storage.join(path, name), str(PurePosixPath(name).with_suffix("")))
            for name in storage.walk_files(path)
            if name.lower().endswith(SUFFIXES)
            and not (below != output and name.startswith(below + "/"))
        ]
        if not inputs:
            raise ConfigError(f"--input {path}: holds no image ({' '.join(SUFFIXES)})")
    _refuse_clashes(inputs, output)
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


def _samples(folder: str) -> list[InputImage]:
    shards = ShardSet([folder])

    def reader(position: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: shards.read(position).image

    return [
        InputImage(f"{folder}: {key}", key, reader(position))
        for position in range(len(shards))
        if (key := shards.row(position).key)
    ]


def _refuse_clashes(inputs: list[InputImage], output: str) -> None:
    places: dict[str, str] = {}
    for image in inputs:
        mask = storage.join(output, f"{image.name}.png")
        # Names that differ in case alone are one file on macOS and Windows.
        other = places.setdefault(mask.lower(), image.source)
        if other != image.source:
            raise ConfigError(f"{other} and {image.source} would both become {mask}; rename one")
        if mask == image.source:
            raise ConfigError(f"--output {output}: the mask would replace {image.source}")
        first = PurePosixPath(image.name).parts[0]
        if first in (COLOR, OVERLAY) and "/" in image.name:
            raise ConfigError(
                f"{image.source}: its mask would land in {output}/{first}, which is for pictures; "
                "rename that folder"
            )
