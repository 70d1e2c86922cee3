"""The command line: one thin command a stage. Every one only wires a Python function.

Heavy imports happen inside the commands, so that ``cocoseg --help`` answers at once.
"""

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .errors import CocosegError, ExitCode
from .printable import printable, redacted
from .processes import Launch

if TYPE_CHECKING:
    from .config import Resolved
    from .settings import Settings

Command = Callable[..., None]

_SECTIONS = {"eval": "infer"}  # of commands whose section has another name
_WIDTH, _MOST = 100, 20  # characters of a line, lines of a list


def common_options(command: Command) -> Command:
    """Add the options that every command has."""
    options = (
        click.option(
            "--config", "config_file", metavar="FILE", help="YAML file, or a bundled one: tiny …"
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override one setting; repeatable. 'cocoseg config show' lists all keys.",
        ),
        click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cocoseg")
def cli() -> None:
    """From COCO instance annotations to a trained semantic segmentation model.

    \b
    cocoseg demo --output demo-out                           try the whole road on drawn pictures
    cocoseg prepare --annotations J --images D --output S    paint masks, pack shards
    cocoseg index S --classes FILE                           train on other programs' shards
    torchrun … -m cocoseg train --shards S --output RUN      train a SegFormer
    cocoseg infer --checkpoint RUN --input D --output O      predict masks
    cocoseg eval --checkpoint RUN --shards S --output O      measure mIoU
    cocoseg export onnx --checkpoint RUN --output F.onnx     for other programs; also hf, program
    cocoseg doctor --shards S                                why does it not work here?
    """


@cli.command()
@click.option(
    "--annotations",
    multiple=True,
    metavar="JSON",
    help="COCO JSON; repeatable, in pairs with --images. Without any: images alone, no masks.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="DIR",
    help="Image folder, .tar or .zip of the --annotations or --masks at the same place.",
)
@click.option(
    "--masks",
    multiple=True,
    metavar="DIR",
    help="Folder, .tar or .zip of label PNGs, instead of --annotations; repeatable.",
)
@click.option(
    "--image-suffix",
    metavar="TEXT",
    help="With --masks: what image names end in before the extension, as _leftImg8bit.",
)
@click.option(
    "--mask-suffix",
    metavar="TEXT",
    help="What mask names end in before the extension, as _gtFine_labelIds.",
)
@click.option("--output", metavar="SHARDS", help="Folder (or URL) for the shards.")
@click.option(
    "--classes",
    metavar="auto|coco|FILE",
    help="Classes: COCO's 80, the JSON's own, or a file; for --masks also voc, cityscapes. [auto]",
)
@click.option(
    "--overlap",
    type=click.Choice(["area", "order"]),
    help="On top: the smaller area, or the later annotation. [area]",
)
@click.option(
    "--crowd",
    type=click.Choice(["paint", "beneath", "ignore", "drop"]),
    help="What becomes of crowd regions. [paint]",
)
@click.option(
    "--boxes",
    type=click.Choice(["quarantine", "ignore", "background"]),
    help="Annotations with a box but no segmentation: leave the image out, mark the box 255 where "
    "nothing else is painted, or paint nothing. [quarantine]",
)
@click.option(
    "--exif",
    type=click.Choice(["auto", "apply", "raw"]),
    help="Orientation that the annotations mean. [auto]",
)
@click.option(
    "--check-images",
    type=click.Choice(["header", "full"]),
    help="Check header and end of each image, or decode it whole. [header]",
)
@click.option(
    "--split",
    metavar="NAME=FRACTION,…",
    help="Deal images to folders below SHARDS by a hash of their ids: train=0.9,val=0.1",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="On the file name: keep images with the same match (or group 1) in one split.",
)
@click.option("--limit", type=int, metavar="N", help="Take N images, chosen by a hash.")
@click.option(
    "--skip-empty", is_flag=True, default=None, help="Leave out images without annotations."
)
@click.option(
    "--max-side", type=int, metavar="N", help="Shrink larger images to N pixels (JPEG, quality 95)."
)
@click.option("--samples-per-shard", type=int, metavar="N", help="Images a shard. [1000]")
@click.option("--workers", type=int, metavar="N", help="Worker processes. [one for each core]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray", "inline"]),
    help="Where workers run: here, on a Ray cluster, or in this process. [local]",
)
@click.option(
    "--overwrite",
    is_flag=True,
    default=None,
    help="Replace what SHARDS holds of other inputs or settings.",
)
@click.option(
    "--max-bad", type=int, metavar="N", help="Quarantined images that are no failure. [0]"
)
@common_options
def prepare(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Paint instances into masks and pack image + mask into WebDataset shards.

    An image that cannot be trusted is left out whole and listed in SHARDS/quarantine.jsonl (exit
    code 4). Run it again after an interruption: finished shards are kept.
    """
    settings = _settings("prepare", config_file, overrides, flags)
    from .prepare.build import prepare as build
    from .prepare.forecast import forecast
    from .prepare.plan import plan_build
    from .prepare.summary import advice, describe, table

    config = settings.value.prepare
    if dry_run:
        expected = forecast(plan_build(config), config)
        _print(expected.to_dict(), as_json, expected.story())
        if expected.refusal is not None:
            raise expected.refusal
        quarantined = expected.quarantined
    else:
        result = build(config, progress=_progress())
        _print(describe(result), as_json, table(result))
        for warning in result.warnings:
            _log(f"warning: {warning}")
        for line in advice(result, config.max_bad):
            _log(line)
        quarantined = len(result.quarantined)
    if quarantined > config.max_bad:
        sys.exit(ExitCode.QUARANTINED)


@cli.command()
@click.argument("shards")
@common_options
def verify(
    shards: str, config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Check SHARDS byte by byte against their manifest: digests, names, pixels, counts.

    SHARDS may also hold the folders that 'prepare --split' made.
    """
    _settings("verify", config_file, overrides, {})
    from dataclasses import asdict

    from .shards.verify import plan_verification
    from .shards.verify import verify as check

    if dry_run:
        plan = asdict(plan_verification(shards))
        return _print(plan, as_json, _lines(plan))
    result = check(shards, progress=_progress())
    lines = [f"{problem.where}: {problem.what}" for problem in result.problems]
    state = f"{len(lines)} problems" if lines else "all good"
    lines.append(f"{result.shards} shards, {result.samples} samples, {result.bytes} bytes: {state}")
    _print(asdict(result), as_json, "\n".join(lines))
    if result.problems:
        sys.exit(ExitCode.BAD_DATA)


@cli.command()
@click.argument("shards")
@click.option(
    "--classes",
    metavar="coco|FILE",
    help="What the train ids in the masks mean: COCO's 81, or a file of names in their order.",
)
@click.option(
    "--exif",
    type=click.Choice(["auto", "apply", "raw"]),
    help="Orientation that the masks follow. [auto]",
)
@click.option(
    "--split",
    metavar="NAME=FRACTION,…",
    help="Deal whole shards to folders below SHARDS, as hard links: train=0.9,val=0.1",
)
@click.option("--workers", type=int, metavar="N", help="Worker processes. [one for each core]")
@common_options
def index(
    shards: str,
    config_file: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make the manifest of SHARDS that another WebDataset program wrote, to train on them.

    A sample is an image (KEY.jpg, KEY.png, KEY.webp …), a mask of train ids (KEY.seg.png, or
    KEY.png beside an image of another name) and perhaps KEY.json. All are checked; if one is bad,
    nothing is written.
    """
    settings = _settings("index", config_file, overrides, flags)
    from .shards.index import index_shards, plan_index

    config = settings.value.index
    if dry_run:
        plan = plan_index(shards, config).to_dict()
        return _print(plan, as_json, _lines(plan))
    result = index_shards(shards, config, progress=_progress())
    _print(result.to_dict(), as_json, _lines(result.to_dict(), but="warnings"))
    for warning in result.warnings:
        _log(f"warning: {warning}")


@cli.command()
@click.option("--shards", multiple=True, metavar="SHARDS", help="Training shards; repeatable.")
@click.option(
    "--val-shards", multiple=True, metavar="SHARDS", help="Validation shards; repeatable."
)
@click.option("--output", "save_dir", metavar="RUN", help="Folder of the run (train.save_dir).")
@click.option(
    "--resume", type=click.Choice(["auto", "never"]), help="Go on where RUN stands. [auto]"
)
@common_options
def train(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Train a SegFormer on shards; under torchrun on several GPUs or processes.

    \b
    cocoseg train --config tiny --shards S --val-shards V --output RUN
    torchrun --standalone --nproc-per-node 4 -m cocoseg train --shards S --val-shards V --output RUN

    Run it again to go on from the newest checkpoint.
    """
    settings = _settings("train", config_file, overrides, flags, {"save_dir": "--output"})
    value = settings.value
    if value.train.workers and not dry_run:
        from .processes import warm_up

        warm_up("cocoseg.train.batches", "cocoseg.model.score")  # while this process imports torch
    from .train.run import forecast, run

    if dry_run:
        plan = forecast(value.train, value.model, value.augment)
        if plan is not None:  # rank 0 alone reports, here as there
            _print(plan, as_json, _lines(plan))
        return
    result = run(value.train, value.model, value.augment, progress=_progress())
    if result is not None:  # rank 0 alone reports
        _print(result.to_dict(), as_json, _lines(result.to_dict()))


@cli.command()
@click.option(
    "--checkpoint",
    metavar="CKPT",
    help="A run, a checkpoint folder, a Hugging Face name, or a file of weights.",
)
@click.option(
    "--input",
    metavar="PATH",
    help="An image, a folder of images, a pattern, a .txt list, or a folder of shards.",
)
@click.option("--output", metavar="DIR", help="Folder for the masks.")
@click.option(
    "--tta/--no-tta", "use_tta", default=None, help="Average several scales and flips. [on]"
)
@click.option("--batch-size", type=int, metavar="N", help="Images a batch. [8]")
@click.option("--color", is_flag=True, default=None, help="Also write colored masks to DIR/color.")
@click.option("--overlay", is_flag=True, default=None, help="Also write overlays to DIR/overlay.")
@click.option(
    "--confidence",
    is_flag=True,
    default=None,
    help="Also write 8-bit confidences to DIR/confidence.",
)
@click.option(
    "--probabilities",
    is_flag=True,
    default=None,
    help="Also write all probabilities, float16, to DIR/probabilities.",
)
@click.option(
    "--min-confidence", type=float, metavar="P", help="Mark less probable pixels 255. [0]"
)
@click.option(
    "--ids", type=click.Choice(["train", "coco"]), help="What masks hold: train or category ids."
)
@click.option("--coco-json", is_flag=True, default=None, help="Also write DIR/coco.json (RLE).")
@common_options
def infer(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Predict a train-id mask (single-channel PNG, original size) for every image.

    Run it again to go on; under torchrun, each process takes its share.
    """
    settings = _settings("infer", config_file, overrides, flags, {"use_tta": "--tta/--no-tta"})
    from .infer.predict.run import plan_prediction, predict

    value = settings.value
    if dry_run:
        plan = plan_prediction(value.infer).to_dict()
        return _print(plan, as_json, _lines(plan))
    result = predict(value.infer, value.model, progress=_progress())
    if result is None:  # rank 0 alone reports
        return None
    _print(result.to_dict(), as_json, _lines(result.to_dict()))
    if result.unreadable:
        _log(f"{len(result.unreadable)} images could not be read")
        sys.exit(ExitCode.QUARANTINED)


@cli.command("eval")
@click.option(
    "--checkpoint",
    metavar="CKPT",
    help="A run, a checkpoint folder, a Hugging Face name, or a file of weights.",
)
@click.option(
    "--predictions",
    metavar="FOLDER",
    help="Instead of a checkpoint: masks that anything made, FOLDER/KEY.png of train ids.",
)
@click.option("--shards", multiple=True, metavar="SHARDS", help="Shards to score on; repeatable.")
@click.option("--output", metavar="DIR", help="Folder for metrics.json, CSV files and report.html.")
@click.option(
    "--tta/--no-tta", "use_tta", default=None, help="Average several scales and flips. [on]"
)
@click.option("--batch-size", type=int, metavar="N", help="Images a batch. [8]")
@click.option(
    "--pictures",
    type=int,
    metavar="N",
    help="Write N pictures of ground truth and prediction. [0]",
)
@click.option("--quick", is_flag=True, default=None, help="Neither boundary IoU nor calibration.")
@click.option(
    "--compare-tta", is_flag=True, default=None, help="Also measure without TTA, in the same run."
)
@common_options
def evaluate(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Measure a checkpoint, or masks, on shards: IoU of every class, at the masks' resolution.

    Look at DIR/report.html. Under torchrun, each process takes its share; the scores are the same.
    """
    settings = _settings("eval", config_file, overrides, flags, {"use_tta": "--tta/--no-tta"})
    from .infer.evaluate.run import evaluate as measure
    from .infer.evaluate.run import plan_evaluation

    value = settings.value
    if dry_run:
        plan = plan_evaluation(value.infer).to_dict()
        return _print(plan, as_json, _lines(plan))
    result = measure(value.infer, value.model, progress=_progress())
    if Launch.from_environment().leads:  # all know the result
        _print(result.to_dict(), as_json, result.table())


@cli.command()
@click.option("--shards", multiple=True, metavar="SHARDS", help="Also try these; repeatable.")
@click.option(
    "--checkpoint",
    metavar="CKPT",
    help="Also load a run, a checkpoint folder, a Hugging Face name, or a file of weights.",
)
@common_options
def doctor(
    shards: tuple[str, ...],
    checkpoint: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Say why it does not work here: libraries, GPUs, limits; with --shards data and network too.

    With --shards, samples go all the way: loader, a few training steps on one batch, scores. No
    file of yours is changed. The exit code is 1 if there is a problem.
    """
    value = _settings("train", config_file, overrides, {"shards": shards}).value
    from .doctor.checks import checks, examine

    patient = (value.train, value.model, value.augment, checkpoint)
    if dry_run:
        names = list(checks(*patient))
        return _print({"checks": names}, as_json, "\n".join(names))
    diagnosis = examine(
        *patient, say=_log if _progress() and sys.stderr.isatty() else lambda name: None
    )
    if diagnosis is not None:  # of all ranks, on rank 0
        _print(diagnosis.to_dict(), as_json, diagnosis.table())
        if diagnosis.problems:
            sys.exit(ExitCode.FAILURE)


def graph_options(command: Command) -> Command:
    """Add the options of a graph in one file."""
    options = (
        click.option(
            "--input-type",
            type=click.Choice(["uint8", "float32"]),
            help="RGB photographs, or what is normalized already. [uint8]",
        ),
        click.option(
            "--output-type",
            type=click.Choice(["logits", "mask"]),
            help="Logits, a quarter of the size, or the mask of train ids. [logits]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def export_options(output: str) -> Callable[[Command], Command]:
    """Return what adds the options of every export to a command."""

    def add(command: Command) -> Command:
        options = (
            click.option(
                "--checkpoint",
                metavar="CKPT",
                help="A run, a checkpoint folder, a Hugging Face name, or a file of weights.",
            ),
            click.option("--output", metavar=output, help="What is written."),
            click.option(
                "--overwrite", is_flag=True, default=None, help="Replace an output that is there."
            ),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return add


@cli.group("export")
def export_group() -> None:
    """Write a checkpoint for other programs: ONNX, torch.export, the Hugging Face hub.

    Each is run and compared with the network first; what differs is not written.
    """


@export_group.command("onnx")
@export_options("FILE.onnx")
@graph_options
@click.option("--opset", type=int, metavar="N", help="ONNX operator set. [18]")
@common_options
def export_onnx(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Write FILE.onnx, for onnxruntime and others; batch, height and width are open."""
    _export_graph("onnx", config_file, overrides, dry_run, as_json, flags)


@export_group.command("program")
@export_options("FILE.pt2")
@graph_options
@common_options
def export_program(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Write FILE.pt2, a program of torch.export, which needs torch alone to run."""
    _export_graph("program", config_file, overrides, dry_run, as_json, flags)


@export_group.command("hf")
@export_options("FOLDER")
@click.option("--metrics", metavar="FILE", help="Scores for the card: eval's metrics.json.")
@common_options
def export_hf(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any
) -> None:
    """Write FOLDER for transformers and the hub, with a model card and without training state."""
    settings = _settings("export", config_file, overrides, flags)
    from .infer.export.folder import export_folder, plan_folder

    _export(plan_folder, export_folder, settings, dry_run, as_json)


def _export_graph(
    name: str,
    config_file: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    flags: Mapping[str, Any],
) -> None:
    settings = _settings("export", config_file, overrides, flags)
    from .infer.export.graph import FORMATS, export_graph, plan_graph

    kind = FORMATS[name]
    _export(partial(plan_graph, kind), partial(export_graph, kind), settings, dry_run, as_json)


def _export(
    plan: Callable[..., Any],
    export: Callable[..., Any],
    settings: "Resolved[Settings]",
    dry_run: bool,
    as_json: bool,
) -> None:
    config, model = settings.value.export, settings.value.model
    if dry_run:
        told = plan(config, model).to_dict()
        return _print(told, as_json, _lines(told))
    result = export(config, model)
    _print(result.to_dict(), as_json, _lines(result.lines()))


@cli.group("config")
def config_group() -> None:
    """Show the settings and where each came from."""


@config_group.command("show")
@click.argument("section", required=False)
@common_options
def config_show(
    section: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Print every setting, or those of SECTION, with its origin (default, FILE:LINE or --set).

    Settings that a training run keeps from its first step on are marked; all others may change when
    the run is resumed.
    """
    del dry_run  # showing changes nothing anyway
    from .config import fixed_keys, show

    settings = _settings("config show", config_file, overrides, {})
    text = show(settings, section)
    include = None if section is None else {section}
    sections = settings.value.effective().model_dump(mode="json", include=include)
    keys = {f"{name}.{key}" for name, content in sections.items() for key in content}
    content = {
        "settings": sections,
        "origins": {key: origin for key, origin in settings.origins.items() if key in keys},
        "fixed_once_begun": [key for key in fixed_keys(type(settings.value)) if key in keys],
    }
    _print(content, as_json, text)


@config_group.command("describe")
@click.argument("key")
@common_options
def config_describe(
    key: str, config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Print what KEY (section.key, or a section) means, its allowed values, default and value."""
    del dry_run  # it changes nothing anyway
    from dataclasses import asdict

    from .config import describe

    found = describe(_settings("config describe", config_file, overrides, {}), key)
    text = "\n\n".join(one.text() for one in found)
    _print({"keys": [asdict(one) for one in found]}, as_json, text)


@config_group.command("schema")
@common_options
def config_schema(
    config_file: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Print the JSON schema of the YAML file, descriptions included (for editors)."""
    del dry_run, as_json  # it is JSON, and changes nothing
    from .settings import Settings

    _settings("config schema", config_file, overrides, {})
    click.echo(json.dumps(Settings.model_json_schema(), indent=1))


@cli.command()
@click.option(
    "--output",
    metavar="DIR",
    default="demo-out",
    show_default=True,
    help="Folder for all that it makes.",
)
@common_options
def demo(
    output: str,
    config_file: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Draw a small COCO data set and walk the whole road on it: prepare, train, infer, eval."""
    # OpenMP's threads spin while they wait for each other. Beside other programs that made training
    # three times slower; asleep earlier, they cost a few percent where the cores are idle.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    settings = _settings("demo", config_file or "demo", overrides, {})
    from .demo.run import plan_demo, run_demo

    plan = plan_demo(settings.value, output)
    if dry_run:
        described = plan.to_dict()
        return _print(described, as_json, _lines(described))
    result = run_demo(plan, progress=_progress(), say=_log)
    _print(result.to_dict(), as_json, result.story())


def main() -> NoReturn:
    """Run the command line and exit with one of `ExitCode`."""
    _speak()
    try:
        cli.main(standalone_mode=False)
        code = ExitCode.OK
    except click.ClickException as error:
        (_as_setting(error) if isinstance(error, click.NoSuchOption) else error).show()
        code = ExitCode(error.exit_code) if error.exit_code in set(ExitCode) else ExitCode.FAILURE
    except CocosegError as error:
        code = error.exit_code
        # Settings that a file or a flag has wrong are wrong in all processes of a machine.
        launch = Launch.from_environment()
        own = code != ExitCode.USAGE or not launch.local_rank
        if launch.leads if error.shared else own:
            _log(f"{'' if code == ExitCode.INTERRUPTED else 'error: '}{error}")
    except (KeyboardInterrupt, click.Abort):
        _log("interrupted; run the same command again to go on")
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:  # 'cocoseg … | head'
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        code = ExitCode.FAILURE
    except OSError as error:  # a folder that may not be read, a disk that fails
        if error.filename is None:
            raise
        _log(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
        code = ExitCode.FAILURE
    sys.exit(code)


def _as_setting(error: click.NoSuchOption) -> click.UsageError:
    """Add a hint for people who write a setting as a flag, ``train --lr 1e-3``."""
    from .config import meant_by
    from .settings import Settings

    if error.ctx is None:
        return error
    command = error.ctx.command
    section = _SECTIONS.get(str(command.name), str(command.name))
    name = error.option_name.lstrip("-").replace("-", "_")
    for key in meant_by(f"{section}.{name}", Settings):
        flags = [one.opts[0] for one in command.params if f"{section}.{one.name}" == key]
        use = flags[0] if flags else f"--set {key}=VALUE"
        return click.UsageError(f"No such option {error.option_name!r}. Use {use}.", error.ctx)
    return error


def _settings(
    command: str,
    config_file: str | None,
    overrides: tuple[str, ...],
    flags: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
) -> "Resolved[Settings]":
    """Resolve the settings of one command; a flag `batch_size` is the key ``infer.batch_size``."""
    from .config import load
    from .settings import Settings

    section = _SECTIONS.get(command, command)
    named = {
        f"{section}.{key}": ((names or {}).get(key, f"--{key.replace('_', '-')}"), value)
        for key, value in flags.items()
    }
    return load(Settings, config_file, overrides, named)


def _print(content: Mapping[str, Any], as_json: bool, text: str) -> None:
    if not as_json:
        return click.echo(printable(text))
    told = redacted(json.dumps(content, ensure_ascii=False))
    if not told.isprintable():
        told = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in told)
    click.echo(told)


def _lines(content: Mapping[str, Any], but: str = "") -> str:
    """Write a flat result as aligned lines; all `but` one."""
    width = max(len(name) for name in content) + 2
    lines = []
    for name, value in content.items():
        if name == but:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
        elif isinstance(value, (list, tuple)):
            value = _joined(list(map(str, value)), f"\n{'':<{width}}")
        elif isinstance(value, float):
            value = f"{value:.4g}"
        lines.append(f"{name.replace('_', ' '):<{width}}{value}")
    return "\n".join(lines)


def _joined(values: list[str], new_line: str) -> str:
    """Put a few short values on one line, each of others on its own, many of them not at all."""
    if sum(map(len, values)) <= _WIDTH:
        return ", ".join(values) or "none"
    more = [f"… and {len(values) - _MOST:,} more"] if len(values) > _MOST else []
    return new_line.join([*values[:_MOST], *more])


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _speak() -> None:
    """Send our own log to stderr, and let names that are no UTF-8 through to stdout."""
    own = logging.getLogger(__package__)
    own.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    own.handlers[:] = [handler]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _log(text: str) -> None:
    click.echo(printable(text), err=True)


def _progress() -> bool:
    return Launch.from_environment().leads
