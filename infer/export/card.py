"""The model card: ``README.md`` of an exported folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from PIL import Image

from ...checkpoint.provenance import Provenance
from ...model.preprocess import Preprocess
from ...taxonomy import Taxonomy

NVLABS_LICENCE = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"


@dataclass(frozen=True, slots=True)
class Card:
    """What the card tells."""

    name: str
    architecture: str
    parameters: int
    taxonomy: Taxonomy
    preprocess: Preprocess
    provenance: Provenance
    metrics: Mapping[str, Any] | None
    """The content of a ``metrics.json``."""

    @property
    def license(self) -> dict[str, str]:
        """The keys of the front matter; none where the user alone decides."""
        if self.provenance.weights == "nvlabs":
            return {
                "license": "other",
                "license_name": "nvidia-source-code-license-segformer",
                "license_link": NVLABS_LICENCE,
            }
        return {"license": "unknown"} if self.provenance.weights == "unknown" else {}

    def text(self) -> str:
        """Return the card in Markdown, YAML front matter first."""
        front = yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)
        parts = (
            f"---\n{front}---",
            f"# {self.name}",
            self._summary(),
            "## Use\n\n" + _USE,
            "## Preprocessing\n\n" + self._preprocessing(),
            *(("## Scores\n\n" + self._scores(self.metrics),) if self.metrics else ()),
            "## Data\n\n" + self._data(),
            "## License\n\n" + self._license_note(),
            "## Classes\n\n" + self._classes(),
        )
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> dict[str, Any]:
        front: dict[str, Any] = {
            "library_name": "transformers",
            "pipeline_tag": "image-segmentation",
            "tags": ["semantic-segmentation", self.architecture, "cocoseg"],
            **self.license,
        }
        if self.provenance.base_model:
            front["base_model"] = self.provenance.base_model
        if self.metrics:
            scored = ", ".join(_names(self.metrics)) or "shards"
            values = [
                {"type": kind, "name": name, "value": self.metrics[key]}
                for key, kind, name in _HEADLINES
                if self.metrics.get(key) is not None
            ]
            result = {
                "task": {"type": "image-segmentation"},
                "dataset": {"name": scored, "type": "webdataset"},
                "metrics": values,
            }
            front["model-index"] = [{"name": self.name, "results": [result]}]
        return front

    def _summary(self) -> str:
        classes = self.taxonomy.num_classes
        return (
            f"Semantic segmentation: a {self.architecture} of {self.parameters / 1e6:.1f} million "
            f"parameters, {classes} classes (background included), made with cocoseg."
        )

    def _preprocessing(self) -> str:
        p = self.preprocess
        size = f"to {p.input_size} × {p.input_size} pixels"
        if p.resizing is not None:
            size = f"as {p.resizing.to_dict()} says"
        kind = Image.Resampling(p.resample).name.lower()
        scaled = "divided by 255" if p.rescale == 1 / 255 else f"multiplied by {p.rescale}"
        text = (
            f"The image, {'BGR' if p.blue_first else 'RGB'}, is resized {size} "
            f"({kind}, antialiased), {scaled}, and normalized with mean {list(p.mean)} and "
            f"standard deviation {list(p.std)}. The logits are brought back to the image's "
            "size bilinearly before the argmax. Labels are train ids as they are: nothing is "
            "subtracted (`do_reduce_labels` is false)."
        )
        if p.keep_ratio:
            text += (
                f"\n\nIt was trained and scored with the longer side at {p.input_size} pixels and "
                "the image's own shape (`keep_ratio`), which transformers' image processor "
                "does not do: it resizes to a square."
            )
        return text

    def _scores(self, metrics: Mapping[str, Any]) -> str:
        how = f"mean of {metrics['views']} views" if metrics.get("tta") else "one view"
        scored = ", ".join(f"`{name}`" for name in _names(metrics))
        lines = [
            f"On {metrics.get('samples', '?')} images of {scored or 'shards'}, {how}, at the "
            "masks' own resolution:\n",
            "| score | value |",
            "|---|---|",
        ]
        lines += [
            f"| {name} | {metrics[key]:.4f} |"
            for key, _, name in _HEADLINES
            if metrics.get(key) is not None
        ]
        return "\n".join(lines)

    def _data(self) -> str:
        known = self.provenance
        if known.data_digest is None:
            return "Which data it was trained on is not recorded in the checkpoint."
        return (
            f"{known.shards} training shard{'s' * (known.shards != 1)}, {known.step} optimizer "
            f"steps. Digest of the data: `{known.data_digest}`, the SHA-256 of the shards' "
            "SHA-256s in the order of their manifests, one a line."
        )

    def _license_note(self) -> str:
        base = self.provenance.base_model
        nvlabs = (
            "NVlabs' pretrained SegFormer weights are for research and evaluation only, not for "
            f"commercial use ({NVLABS_LICENCE}), and so is what is trained from them."
        )
        if self.provenance.weights == "nvlabs":
            return f"The weights began from `{base}`. {nvlabs}"
        if self.provenance.weights == "unknown":
            began = f"The weights began from `{base}`" if base else "The origin of the weights is"
            told = ", whose own origin is not recorded" if base else " not recorded"
            return f"{began}{told}. They may go back to NVlabs': {nvlabs}"
        if self.provenance.weights == "other":
            return f"The weights began from `{base}`: its license applies."
        return (
            "The weights were trained from random ones: the license is for their maker to choose, "
            "who also knows what the training images allow."
        )

    def _classes(self) -> str:
        lines = ["| train id | name | category ids |", "|---|---|---|"]
        lines += [
            f"| {train_id} | {_cell(entry.name)} | {', '.join(map(str, entry.category_ids))} |"
            for train_id, entry in enumerate(self.taxonomy.classes)
        ]
        ignored = f"\nPixels of {self.taxonomy.ignore_index} in a mask are ignored."
        return "\n".join([*lines, ignored])


_HEADLINES = (
    ("mIoU", "mean_iou", "mean IoU"),
    ("mIoU_foreground", "mean_iou", "mean IoU without background"),
    ("boundary_mIoU", "boundary_iou", "mean boundary IoU"),
    ("pixel_accuracy", "accuracy", "pixel accuracy"),
    ("mean_accuracy", "mean_accuracy", "mean class accuracy"),
)

_USE = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

folder = "."  # this folder, or its name on the hub
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
image = Image.open("photo.jpg").convert("RGB")
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
size = (image.height, image.width)
mask = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]  # train ids
```

Or `pipeline("image-segmentation", model=folder)(image)`."""


def _names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the scored shards, without the folders of the computer they lay on."""
    return [os.path.basename(str(path).rstrip("/")) for path in metrics.get("shards", ())]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
