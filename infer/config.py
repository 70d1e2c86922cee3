"""Settings of ``cocoseg infer`` and ``cocoseg eval``."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ..config import Flag, PathField, PathMarker
from ..shards.config import ReadConfig


class InferConfig(ReadConfig):
    """From a checkpoint to masks and scores."""

    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("ckpt", "model_path", "weights"), "checkpoint"),
            **dict.fromkeys(("source", "images"), "input"),
            **dict.fromkeys(("bs", "batch"), "batch_size"),
            "tta": "use_tta",
            "scales": "tta_scales",
            **dict.fromkeys(("conf", "threshold"), "min_confidence"),
            **dict.fromkeys(("gpu", "gpus"), "device"),
        }
    )

    checkpoint: Annotated[str | None, PathMarker(only_existing=True), Flag("CKPT")] = None
    """A run, a checkpoint folder, a Hugging Face name, or a file of weights (.pt …)."""
    input: Annotated[PathField | None, Flag("PATH", commands=("infer",))] = None
    """The images to predict: an image, a folder of images (recursive), a pattern such as
    'photos/**/*.jpg', a .txt file that lists images, or a folder of shards."""
    shards: Annotated[tuple[PathField, ...], Flag("SHARDS", commands=("eval",))] = ()
    """Folders of shards to score."""
    predictions: Annotated[PathField | None, Flag("FOLDER", commands=("eval",))] = None
    """Masks to score instead of a checkpoint: a folder, FOLDER/KEY.png of train ids
    for each sample."""
    output: Annotated[PathField | None, Flag("DIR")] = None
    """Folder that receives masks, or scores."""
    use_tta: Annotated[bool, Flag(name="--tta/--no-tta")] = True
    """Average the probabilities of several scales and flips."""
    tta_scales: tuple[PositiveFloat, ...] = Field((0.75, 1.0, 1.25), min_length=1)
    """Factors of the input size."""
    tta_flip: bool = True
    """Add the horizontally flipped image at every scale."""
    tta_flip_vertical: bool = False
    """Add the vertically flipped images, too: for images without an up, such as from above."""
    tile_above: NonNegativeInt = 4096
    """Images whose longer side [pixels] is above this are cut into tiles, each of which is
    predicted as an image, and which are blended smoothly; 0 cuts none."""
    tile_size: NonNegativeInt = 0
    """Side of a tile [pixels of the image]; 0 is twice the network's input size."""
    tile_overlap: float = Field(0.25, ge=0, lt=1)
    """Share of a tile that it has in common with the next, at least."""
    batch_size: Annotated[PositiveInt, Flag()] = 8
    """Images per batch. It has an effect on the last bits of a score: keep it to compare
    exactly."""
    ids: Annotated[Literal["train", "coco"], Flag(commands=("infer",))] = "train"
    """Content of the masks: train ids, or the category ids of the classes."""
    min_confidence: Annotated[float, Flag(commands=("infer",))] = Field(0.0, ge=0, le=1)
    """Pixels whose class is less probable are ignored (255) in masks; 0 keeps all."""
    confidence: Annotated[bool, Flag(commands=("infer",))] = False
    """Also write the probability of each pixel's class to OUTPUT/confidence/: 8 bits, 255 is
    1.0."""
    probabilities: Annotated[bool, Flag(commands=("infer",))] = False
    """Also write all probabilities to OUTPUT/probabilities/*.npy: float16, (height, width,
    classes)."""
    coco_json: Annotated[bool, Flag(commands=("infer",))] = False
    """Also write OUTPUT/coco.json: one annotation for each class of an image, as RLE."""
    color: Annotated[bool, Flag(commands=("infer",))] = False
    """Also write colored masks to OUTPUT/color/."""
    overlay: Annotated[bool, Flag(commands=("infer",))] = False
    """Also write masks over their images to OUTPUT/overlay/."""
    legend: bool = True
    """Append the names and colors of the classes below each overlay."""
    palette: Literal["distinct", "voc"] = "distinct"
    """Colors of the classes in color/ and overlay/: easy to tell apart, or those of PASCAL VOC."""
    quick: Annotated[bool, Flag(commands=("eval",))] = False
    """Skip boundary IoU, calibration and label errors."""
    compare_tta: Annotated[bool, Flag(commands=("eval",))] = False
    """Also score without test-time augmentation, in the same run."""
    pictures: Annotated[NonNegativeInt, Flag(commands=("eval",))] = 0
    """Number of pictures (image, ground truth, prediction, errors) in OUTPUT/pictures/."""
    save_predictions: Annotated[bool, Flag(commands=("eval",))] = False
    """Also write the predicted masks, train ids, to OUTPUT/predictions/KEY.png."""
    device: str = "auto"
    """'auto' (a GPU where there is one), 'cpu', 'cuda' …"""
