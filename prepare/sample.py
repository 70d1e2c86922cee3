"""One image on its way into a shard: read, checked, painted; or left out whole."""

import io
from collections import Counter

import msgspec
import numpy as np
from PIL import Image

from .. import photo
from ..photo import BadPhoto, PhotoInfo
from ..shards.orientation import Orientation, Turn
from ..shards.png import Mask, encode_mask
from ..shards.writer import EncodedSample
from .images import PhotoPlace, read_photo
from .label_images import paint_labels
from .label_values import LabelValues
from .outlines import BadAnnotation, Instances
from .rasterize import PaintRules, count_pixels, rasterize

_LONGEST_DETAIL = 1000  # characters


class ImageTask(msgspec.Struct, frozen=True):
    """One image to be painted and packed; everything a worker needs."""

    key: str
    source: int
    """Place of its annotation file on the command line."""
    image_id: int
    file_name: str
    location: PhotoPlace | None
    """Where its image lies; None where it was not found."""
    moved: str
    """As what it is counted where it was not found under its ``file_name``."""
    problem: str | None
    """The reason code of what makes it useless already; nothing is read then."""
    detail: str
    width: int
    height: int
    """Size by the annotations [pixels]; 0 where there are none."""
    instances: Instances | None
    """None where there are no annotations: the sample gets no mask, or that of `label_image`."""
    label_image: PhotoPlace | None = None
    """Where the file lies whose pixels are its labels."""


class SampleRules(msgspec.Struct, frozen=True):
    """How samples are made, for all images alike."""

    paint: PaintRules
    labels: LabelValues | None
    """What the pixels of label images mean."""
    orientation: Orientation
    check_full: bool
    """Decode every pixel of every image."""
    max_side: int | None
    jpeg_quality: int


class Quarantined(msgspec.Struct, frozen=True):
    """An image that was left out, whole, and why."""

    key: str
    source: int
    image_id: int
    file_name: str
    reason: str
    detail: str
    annotation_id: int | None = None


class MadeSample(msgspec.Struct, frozen=True):
    """A sample and what was found in its inputs."""

    sample: EncodedSample
    counts: Counter[str]
    turn: Turn


def build_sample(image: ImageTask, rules: SampleRules) -> MadeSample | Quarantined:
    """Check an image and paint its mask; an image that cannot be trusted is left out whole."""
    try:
        if image.problem is not None or image.location is None:
            raise BadPhoto(image.problem or "missing-file", image.detail)
        return _build(image, image.location, rules)
    except BadPhoto as bad:
        return quarantine(image, bad.reason, bad.detail)
    except BadAnnotation as bad:
        return quarantine(image, bad.reason, bad.detail, bad.annotation_id)


def quarantine(
    image: ImageTask, reason: str, detail: str, annotation_id: int | None = None
) -> Quarantined:
    """Return the entry of an image in ``quarantine.jsonl``."""
    if len(detail) > _LONGEST_DETAIL:  # it may quote a file name of megabytes
        detail = f"{detail[:_LONGEST_DETAIL]}…"
    return Quarantined(
        image.key, image.source, image.image_id, image.file_name, reason, detail, annotation_id
    )


def _build(image: ImageTask, location: PhotoPlace, rules: SampleRules) -> MadeSample:
    content = read_photo(location)
    info = photo.check(content, rules.check_full)
    mask: Mask | None = None
    if image.label_image is not None and rules.labels is not None:
        mask = paint_labels(read_photo(image.label_image), rules.labels)
        height, width = mask.shape
    elif image.width:
        width, height = image.width, image.height
    else:
        width, height = info.size(info.orientation)
    said = "annotated as" if image.label_image is None else "the mask is"
    turn = rules.orientation.turn(info, width, height, said)
    counts = Counter(_oddities(info))
    if image.moved:
        counts[image.moved] += 1
    counts["turned_by_exif"] += turn.value != 1
    counts["exif_ambiguous"] += turn.ambiguous
    class_pixels = () if mask is None else count_pixels(mask)
    if image.instances is not None:
        painting = rasterize(image.instances, width, height, rules.paint)
        mask, class_pixels = painting.mask, painting.class_pixels
        counts.update(painting.counts)
        counts["without_annotations"] += not len(image.instances)
    extension, orientation = info.extension, turn.value
    if rules.max_side is not None and max(width, height) > rules.max_side:
        width, height = _shrunk_size(width, height, rules.max_side)
        content = _shrink_photo(content, turn.value, width, height, rules.jpeg_quality)
        if mask is not None:
            mask = _shrink_mask(mask, width, height)
            class_pixels = count_pixels(mask)
        extension, orientation = "jpg", 1
        counts["resized"] += 1
    sample = EncodedSample(
        key=image.key,
        photo=content,
        extension=extension,
        mask=None if mask is None else encode_mask(mask),
        meta=_meta(image, info, width, height, orientation),
        width=width,
        height=height,
        orientation=orientation,
        class_pixels=class_pixels,
    )
    return MadeSample(sample, counts, turn)


def _oddities(info: PhotoInfo) -> dict[str, int]:
    """Return what is worth counting of an image that is not plain 8-bit RGB."""
    return {
        f"photo_{info.mode.replace(';', '_')}": int(info.mode != "RGB"),
        "photo_alpha": int(info.alpha),
        "photo_animated": int(info.frames > 1),
    }


def _meta(
    image: ImageTask, info: PhotoInfo, width: int, height: int, orientation: int
) -> dict[str, object]:
    meta = {
        "image_id": image.image_id,
        "file_name": image.file_name,
        "source": image.source,
        "width": width,
        "height": height,
        "orientation": orientation,
        "mode": info.mode,
    }
    if image.instances is not None:
        meta["instances"] = len(image.instances)
    if info.alpha:
        meta["alpha"] = True
    if info.frames > 1:
        meta["frames"] = info.frames
    return meta


def _shrunk_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    scale = max_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shrink_photo(content: bytes, turn: int, width: int, height: int, quality: int) -> bytes:
    upright = Image.fromarray(photo.decode(content, turn))
    buffer = io.BytesIO()
    resized = upright.resize((width, height), Image.Resampling.LANCZOS)
    resized.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _shrink_mask(mask: Mask, width: int, height: int) -> Mask:
    """Take the pixel under the center of each new one: the nearest, and no class is mixed."""
    old_height, old_width = mask.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    shrunk: Mask = mask[rows[:, None], columns]
    return shrunk
