"""Masks that any program made, scored in place of a network's."""

# H W pixels

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from ...errors import ConfigError, DataError
from ...model.predictor import DevicePrediction
from ...shards.decode import decode_mask
from ...shards.reader import Sample, ShardSet
from ...shards.tarball import key_path
from ...storage import Location, locate
from ..folder import FOLDERS, PROGRESS, files_of_outputs, recorded_settings


def mask_names(shards: ShardSet, option: str) -> list[str]:
    """Return the name of the predicted mask of each sample, ``KEY.png``.

    Raises
    ------
    ConfigError
        If two samples share a key; it begins with the `option` that asks for masks.
    """
    names = [f"{key_path(shards.row(position).key)}.png" for position in range(len(shards))]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{option}: {name} would belong to two samples of that key; score the folders of "
            "shards one by one"
        )
    return names


class PredictedMasks:
    """Label PNGs of any program: ``FOLDER/KEY.png`` of each sample, and no other.

    What else lies in the folder, and pictures in the folders that ``infer`` makes for them, does
    not matter.

    Parameters
    ----------
    folder
        Local path or URL.
    shards
        Whose samples are scored.

    Raises
    ------
    ConfigError
        If the folder is not there, an inference into it has not ended, it holds category ids by its
        own account, or two samples share a key.
    DataError
        If a mask is missing, or one too many.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str, shards: ShardSet) -> None:
        place = locate(folder)
        if not place.is_dir():
            raise ConfigError(f"--predictions {folder}: no such folder")
        if (place / PROGRESS).is_dir():
            raise ConfigError(
                f"--predictions {folder}: an inference into it has not ended: its masks may be of "
                "several; run that 'cocoseg infer' again"
            )
        self._folder = place
        self._taxonomy = shards.taxonomy
        _refuse_category_ids(place)
        wanted = set(mask_names(shards, f"--predictions {folder}"))
        there = set(place.walk_files())
        there -= files_of_outputs(place, there)  # pictures of an evaluation, say
        missing = sorted(wanted - there)
        if missing:
            raise DataError(
                f"{place / missing[0]}: is missing{_more(missing)}; the shards hold "
                f"{len(wanted):,} samples, and each needs a mask"
            )
        extra = sorted(
            name
            for name in there - wanted
            if name.endswith(".png") and name.partition("/")[0] not in FOLDERS
        )
        if extra:
            raise DataError(
                f"{place / extra[0]}: belongs to no sample of the shards"
                f"{_more(extra)}; remove what is not to be scored, or add its shards"
            )

    def prepare(self, sample: Sample) -> DevicePrediction:
        """Read the mask of a sample; see `Predicts`.

        Raises
        ------
        DataError
            If a mask is not a single-channel grayscale PNG, has another size than its image, or
            holds values that are not train ids.
        """
        file = self._folder / f"{key_path(sample.key)}.png"
        mask = decode_mask(file.read_bytes(), str(file), expected=sample.mask.shape)
        classes, ignored = self._taxonomy.num_classes, self._taxonomy.ignore_index
        wrong = mask[(mask >= classes) & (mask != ignored)]
        if wrong.size:
            raise DataError(
                f"{file}: holds {int(wrong.max())}; expected train ids 0…{classes - 1}, and "
                f"{ignored} where there is no prediction"
            )
        narrow = np.uint8 if self._taxonomy.bits == 8 else np.int32  # torch knows few uint16
        return DevicePrediction(torch.from_numpy(mask.astype(narrow, copy=False)))

    def gather(
        self, samples: Sequence[Sample], prepared: Sequence[DevicePrediction]
    ) -> Sequence[DevicePrediction]:
        """Return the masks that were read."""
        del samples
        return prepared

    def predictions(self, gathered: Sequence[DevicePrediction]) -> Sequence[DevicePrediction]:
        """Return the masks that were read."""
        return gathered


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1:,} more" if len(names) > 1 else ""


def _refuse_category_ids(folder: Location) -> None:
    """Refuse masks that ``infer`` wrote with category ids: most of them look like train ids."""
    ids = recorded_settings(folder).get("ids", "train")
    if ids != "train":
        raise ConfigError(
            f"--predictions {folder}: its config.yaml says that the masks hold category ids "
            f"(infer.ids: {ids}); predict again with train ids"
        )
