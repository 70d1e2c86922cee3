"""Networks from names, folders and files, and back into folders that transformers understands."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, SegformerForSemanticSegmentation

from .. import storage
from ..errors import ConfigError, DataError
from ..taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from .config import ModelConfig
from .preprocess import Preprocess
from .segformer import architecture, label_settings

PREPROCESS_NAME = "preprocessor_config.json"
TAXONOMY_NAME = "taxonomy.json"

_CLASSIFIER = ("decode_head.classifier.weight", "decode_head.classifier.bias")
_WRAPPERS = ("model", "model_state_dict", "state_dict")


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network and all that must be known to use it."""

    network: nn.Module
    """transformers' `SegformerForSemanticSegmentation`, in eval mode."""
    preprocess: Preprocess
    taxonomy: Taxonomy
    origin: str
    """Where it was read from: a folder, a file, or a name of the hub."""


def start_network(
    config: ModelConfig, taxonomy: Taxonomy, seed: int
) -> tuple[nn.Module, Preprocess]:
    """Return the network that a training run starts from.

    Pretrained weights are kept, all of them; the classifier alone is new where the classes differ.
    An encoder without a decode head (``nvidia/mit-b0`` …) gets a new head.

    Raises
    ------
    ConfigError
        If the name is unknown, the network is no SegFormer, or weights are missing or left over.
    """
    torch.manual_seed(seed)  # decides the new weights
    if is_random(config.name):
        size = config.name.removeprefix("segformer-")
        network = SegformerForSemanticSegmentation(architecture(size, taxonomy))
        return network, Preprocess(config.input_size, config.keep_ratio)
    source = _local(config.name)
    with _quiet():
        settings = _pretrained(AutoConfig, source, config.name)
        if settings.model_type != "segformer":
            raise ConfigError(f"model.name {config.name}: is a {settings.model_type}, no SegFormer")
        same = list(settings.id2label.values()) == list(taxonomy.names)
        settings.update(label_settings(taxonomy))
        network, report = _pretrained(
            SegformerForSemanticSegmentation,
            source,
            config.name,
            config=settings,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_report(config.name, report, new_head=True)
    if not same:  # the same number of other classes would slip in silently
        head: Any = network
        head._init_weights(head.decode_head.classifier)
    theirs = _preprocess_of(source)
    return network, Preprocess(config.input_size, config.keep_ratio, theirs.mean, theirs.std)


def is_random(name: str) -> bool:
    """Tell whether a model name asks for random weights (``segformer-b0``) or pretrained ones."""
    return name.startswith("segformer-")


def save_network(
    folder: Path, network: nn.Module, preprocess: Preprocess, taxonomy: Taxonomy
) -> None:
    """Write a Hugging Face folder: config, weights, image processor, and our taxonomy."""
    model: Any = network
    with _quiet():
        model.save_pretrained(folder)
    for name, content in (
        (PREPROCESS_NAME, preprocess.to_dict()),
        (TAXONOMY_NAME, taxonomy.to_dict()),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_network(checkpoint: str, config: ModelConfig) -> LoadedNetwork:
    """Load a network for inference.

    Parameters
    ----------
    checkpoint
        A run (its ``best``, else its ``last``), a checkpoint folder, a Hugging Face name, or a
        ``.pt``/``.pth`` file of weights.
    config
        Architecture, classes and size for a bare file of weights; a folder brings its own.

    Raises
    ------
    ConfigError
        If there is nothing of that name, or a bare file comes without an architecture.
    DataError
        If weights are missing, left over or of other shapes.
    """
    if checkpoint.endswith((".pt", ".pth")):
        return _load_file(checkpoint, config)
    folder = _local(resolve_run(checkpoint))
    with _quiet():
        network, report = _pretrained(
            SegformerForSemanticSegmentation, folder, checkpoint, output_loading_info=True
        )
    _check_report(checkpoint, report, new_head=False)
    taxonomy_file = Path(folder) / TAXONOMY_NAME
    if taxonomy_file.is_file():
        taxonomy = Taxonomy.from_dict(json.loads(taxonomy_file.read_text(encoding="utf-8")))
    else:  # another program's: its labels, in order
        labels = network.config.id2label
        taxonomy = Taxonomy(tuple(SemanticClass(str(labels[i])) for i in sorted(labels)))
    return LoadedNetwork(network.eval(), _preprocess_of(folder), taxonomy, str(folder))


def resolve_run(checkpoint: str) -> str:
    """Return the checkpoint that a run's ``best`` or ``last`` points to; else `checkpoint`."""
    for name in ("best", "last"):
        link = storage.join(checkpoint, name)
        if not storage.exists(link):
            continue
        if storage.is_dir(link):
            return link
        return storage.join(checkpoint, storage.read_bytes(link).decode().strip())
    if storage.is_dir(storage.join(checkpoint, "checkpoints")):
        raise ConfigError(f"--checkpoint {checkpoint}: is a run without a finished checkpoint yet")
    return checkpoint


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Read a bare file of weights: raw, or under ``model``, ``model_state_dict`` or ``state_dict``.

    Raises
    ------
    DataError
        If it holds anything but tensors, which are all that is unpickled.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a hostile or broken file raises anything
        raise DataError(f"{path}: is no file of weights: {str(error).splitlines()[0]}") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise DataError(
            f"{path}: expected weights by name, at the top or under {', '.join(_WRAPPERS)}"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _load_file(path: str, config: ModelConfig) -> LoadedNetwork:
    weights = read_weights(path)
    classes = config.num_classes or len(weights.get(_CLASSIFIER[0], ()))
    taxonomy = coco_taxonomy()
    if classes != taxonomy.num_classes:
        names = ("background", *(f"class {i}" for i in range(1, classes)))
        taxonomy = Taxonomy(tuple(SemanticClass(name) for name in names))
    if is_random(config.name):
        settings = architecture(config.name.removeprefix("segformer-"), taxonomy)
    else:
        with _quiet():
            settings = _pretrained(AutoConfig, _local(config.name), config.name)
            settings.update(label_settings(taxonomy))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # By way of a folder: transformers converts the key names of its older versions on load.
        settings.save_pretrained(folder)
        plain = {name: value.contiguous().clone() for name, value in weights.items()}
        save_file(plain, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        try:
            network, report = SegformerForSemanticSegmentation.from_pretrained(
                folder, output_loading_info=True
            )
        except RuntimeError as error:
            raise DataError(
                f"{path}: does not fit model.name {config.name}: {str(error).splitlines()[0]}"
            ) from None
    _check_report(path, report, new_head=False)
    return LoadedNetwork(
        network.eval(), Preprocess(config.input_size, config.keep_ratio), taxonomy, path
    )


def _check_report(name: str, report: Mapping[str, Any], *, new_head: bool) -> None:
    """Refuse a network that was not loaded whole; `new_head` allows what training replaces."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    if new_head:
        mismatched -= set(_CLASSIFIER)
        if all(key.startswith("decode_head.") for key in missing):
            missing = set()
            unexpected = {key for key in unexpected if not key.startswith("classifier.")}
    problems = {"missing": missing, "left over": unexpected, "of another shape": mismatched}
    told = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{' …' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise DataError(f"{name}: weights do not fit the network: {'; '.join(told)}")


def _local(reference: str) -> str:
    """Return a local folder, or a name of the hub, that transformers can load."""
    return str(storage.fetch_folder(reference)) if storage.is_remote(reference) else reference


def _pretrained(kind: Any, source: str, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name}: cannot be loaded: {str(error).splitlines()[0]}\n"
            "Give a local folder, a name of the Hugging Face hub (needs the network once), or "
            "segformer-tiny, segformer-b0 … segformer-b5 for random weights."
        ) from None


def _preprocess_of(folder: str) -> Preprocess:
    content: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError), _quiet():
        content = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(
            folder
        )[0]
    return Preprocess.from_dict(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' reports and bars; what they say is checked by `_check_report`."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
