"""The command line: one thin command per stage. Every one only calls a Python function.

Heavy imports happen inside the commands, so that ``cocoseg --help`` answers at once. Options come
from the settings: a field of a section that is marked by `Flag` is an option of its command.
"""

import functools
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .errors import CocosegError, ExitCode
from .printable import printable, redacted
from .processes import Launch
from .results import Facts, Result

if TYPE_CHECKING:
    from .config import Resolved
    from .infer.export.run import Format
    from .settings import Settings


@dataclass(frozen=True, slots=True)
class Call:
    """What the command line asks for."""

    settings: "Resolved[Settings]"
    dry_run: bool
    as_json: bool

    @property
    def value(self) -> "Settings":
        """The settings."""
        return self.settings.value

    def print(self, result: Result | None) -> None:
        """Print a result, if this process has one: of several, rank 0 reports alone."""
        if result is None:
            return None
        if not self.as_json:
            return click.echo(printable(result.text()))
        told = redacted(json.dumps(result.to_dict(), ensure_ascii=False))
        if not told.isprintable():
            told = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in told)
        click.echo(told)


class _SettingsCommand(click.Command):
    """A command whose options are fields of the section; they are made when they are needed."""

    def __init__(self, *arguments: Any, section: str = "", **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.section = section

    @functools.cached_property
    def settings_options(self) -> list[click.Option]:
        """The options that are fields of the section."""
        if not self.section:
            return []
        from .options import options_of

        return options_of(self.section, str(self.name))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return arguments and options, those of the settings first."""
        return [*self.settings_options, *super().get_params(ctx)]


def command(
    name: str, section: str = "", group: click.Group | None = None, config: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Add a command with the options that every command has.

    Parameters
    ----------
    section
        Whose fields are options; they end in `Call.settings`. The function receives the `Call` and
        the values of its own options and arguments.
    config
        The YAML file if ``--config`` is not given.
    """

    def add(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(
            config_file: str | None,
            overrides: tuple[str, ...],
            dry_run: bool,
            as_json: bool,
            **given: Any,
        ) -> None:
            from .config import load
            from .settings import Settings

            flags = {
                f"{section}.{one.name}": (
                    "/".join((*one.opts, *one.secondary_opts)),
                    given.pop(str(one.name)),
                )
                for one in made.settings_options
            }
            settings = load(Settings, config_file or config, overrides, flags)
            function(Call(settings, dry_run, as_json), **given)

        own = run.__dict__.pop("__click_params__", [])
        for option in reversed(_COMMON):
            run = option(run)
        run.__dict__["__click_params__"] += own  # the last are listed first
        made = click.command(name, cls=_SettingsCommand, section=section)(run)
        (group or cli).add_command(made)
        return made

    return add


_COMMON = (
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
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cocoseg")
def cli() -> None:
    """From COCO instance annotations to a trained semantic segmentation model.

    \b
    cocoseg demo --output demo-out                           run the full pipeline on drawn images
    cocoseg prepare --annotations J --images D --output S    rasterize masks, pack shards
    cocoseg index S --classes FILE                           train on other programs' shards
    torchrun … -m cocoseg train --shards S --output RUN      train a SegFormer
    cocoseg infer --checkpoint RUN --input D --output O      predict masks
    cocoseg eval --checkpoint RUN --shards S --output O      measure mIoU
    cocoseg view S O                                         look at masks and mistakes in a browser
    cocoseg export onnx --checkpoint RUN --output F.onnx     for other programs; also hf, program
    cocoseg doctor --shards S                                find out what does not work here
    """


@command("prepare", "prepare")
def prepare(call: Call) -> None:
    """Rasterize instances into masks and pack image + mask into WebDataset shards.

    An image that cannot be trusted is left out whole and listed in SHARDS/quarantine.jsonl (exit
    code 4). After an interruption, run the same command again: finished shards are kept.
    """
    from .prepare.build import prepare_shards
    from .prepare.forecast import forecast
    from .prepare.plan import plan_build

    config = call.value.prepare
    if call.dry_run:
        expected = forecast(plan_build(config), config)
        call.print(expected)
        if expected.refusal is not None:
            raise expected.refusal
        quarantined = expected.quarantined
    else:
        result = prepare_shards(config, progress=_progress())
        call.print(result)
        for warning in result.warnings:
            _log(f"warning: {warning}")
        for line in result.advice(config.max_bad):
            _log(line)
        quarantined = len(result.quarantined)
    if quarantined > config.max_bad:
        sys.exit(ExitCode.QUARANTINED)


@command("verify")
@click.argument("shards")
def verify(call: Call, shards: str) -> None:
    """Check SHARDS byte by byte against their manifest: digests, names, pixels, counts.

    SHARDS may also hold the folders that 'prepare --split' made.
    """
    from .shards.verify import plan_verification
    from .shards.verify import verify as check

    if call.dry_run:
        return call.print(plan_verification(shards))
    result = check(shards, progress=_progress())
    call.print(result)
    if result.problems:
        sys.exit(ExitCode.BAD_DATA)


@command("index", "index")
@click.argument("shards")
def index(call: Call, shards: str) -> None:
    """Make the manifest of SHARDS that another WebDataset program wrote, to train on them.

    A sample is an image (KEY.jpg, KEY.png, KEY.webp …), a mask of train ids (KEY.seg.png, or
    KEY.png beside an image of another name) and perhaps KEY.json. All are checked; if one is bad,
    nothing is written.
    """
    from .shards.index import index_shards, plan_index

    config = call.value.index
    if call.dry_run:
        return call.print(plan_index(shards, config))
    result = index_shards(shards, config, progress=_progress())
    call.print(result)
    for warning in result.warnings:
        _log(f"warning: {warning}")


@command("train", "train")
def train(call: Call) -> None:
    """Train a SegFormer on shards; under torchrun on several GPUs or processes.

    \b
    cocoseg train --config tiny --shards S --val-shards V --output RUN
    torchrun --standalone --nproc-per-node 4 -m cocoseg train --shards S --val-shards V --output RUN

    Run the same command again to resume from the newest checkpoint.
    """
    value = call.value
    if value.train.workers and not call.dry_run:
        from .processes import warm_up

        warm_up("cocoseg.train.batches", "cocoseg.model.score")  # while this process imports torch
    from .train.run import forecast, train_model

    if call.dry_run:
        call.print(forecast(value.train, value.model, value.augment))
    else:
        call.print(train_model(value.train, value.model, value.augment, progress=_progress()))


@command("infer", "infer")
def infer(call: Call) -> None:
    """Predict a train-id mask (single-channel PNG, original size) for every image.

    Run the same command again to resume; under torchrun, each process predicts its share.
    """
    from .infer.predict.run import plan_prediction, predict

    if call.dry_run:
        return call.print(plan_prediction(call.value.infer))
    result = predict(call.value.infer, call.value.model, progress=_progress())
    call.print(result)
    if result is not None and result.unreadable:
        _log(f"{len(result.unreadable)} images could not be read")
        sys.exit(ExitCode.QUARANTINED)


@command("eval", "infer")
def evaluate(call: Call) -> None:
    """Measure a checkpoint, or masks, on shards: IoU of every class, at the masks' resolution.

    See DIR/report.html. Under torchrun, each process scores its share; the scores are the same.
    """
    from .infer.evaluate.run import evaluate as measure
    from .infer.evaluate.run import plan_evaluation

    if call.dry_run:
        return call.print(plan_evaluation(call.value.infer))
    result = measure(call.value.infer, call.value.model, progress=_progress())
    call.print(result if Launch.from_environment().leads else None)  # all ranks have it


@command("doctor", "train")
@click.option(
    "--checkpoint",
    metavar="CKPT",
    help="Also load a run, a checkpoint folder, a Hugging Face name, or a file of weights.",
)
def doctor(call: Call, checkpoint: str | None) -> None:
    """Say why it does not work here: libraries, GPUs, limits; with --shards data and network too.

    With --shards, samples go all the way: loader, a few training steps on one batch, scores. No
    file of yours is changed. The exit code is 1 if there is a problem.
    """
    from .doctor.checks import checks, examine

    value = call.value
    patient = (value.train, value.model, value.augment, checkpoint)
    if call.dry_run:
        names = list(checks(*patient))
        return call.print(Facts({"checks": names}, "\n".join(names)))
    say = _log if _progress() and sys.stderr.isatty() else lambda name: None
    diagnosis = examine(*patient, say=say)
    call.print(diagnosis)
    if diagnosis is not None and diagnosis.problems:
        sys.exit(ExitCode.FAILURE)


@cli.group("export")
def export_group() -> None:
    """Write a checkpoint for other programs: ONNX, torch.export, the Hugging Face hub.

    Each is run and compared with the network first; what differs is not written.
    """


@command("onnx", "export", export_group)
def export_onnx(call: Call) -> None:
    """Write FILE.onnx, for onnxruntime and others; batch, height and width are open."""
    _export("onnx", call)


@command("program", "export", export_group)
def export_program(call: Call) -> None:
    """Write FILE.pt2, a program of torch.export, which needs torch alone to run."""
    _export("program", call)


@command("hf", "export", export_group)
def export_hf(call: Call) -> None:
    """Write a folder for transformers and the hub, with a model card, without training state."""
    _export("hf", call)


def _export(format: "Format", call: Call) -> None:  # noqa: A002
    from .infer.export.run import export_model, plan_export

    write = plan_export if call.dry_run else export_model
    call.print(write(format, call.value.export, call.value.model))


@command("view")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8100,
    show_default=True,
    help="0 takes a free one.",
)
@click.option("--open/--no-open", "open_browser", default=True, help="Open a browser.")
@click.option("--export", "export_file", metavar="FILE", help="Write the samples as one HTML file.")
@click.option("--only", metavar="FILE", help="With --export: the list of samples to write.")
def view(
    call: Call,
    paths: tuple[str, ...],
    host: str,
    port: int,
    open_browser: bool,
    export_file: str | None,
    only: str | None,
) -> None:
    """Show samples, masks, mistakes and runs in a browser, from the files of other commands.

    PATHs are folders of shards, of 'cocoseg eval', of 'cocoseg infer --input SHARDS' and of
    'cocoseg train', in any number and order. Nothing is converted or copied.
    """
    from .viewer.run import serve
    from .viewer.sources import open_sources

    if only and not export_file:
        raise click.UsageError("--only: is for --export; in the page, search and filters choose")
    if call.dry_run:
        return call.print(open_sources(paths))
    if export_file:
        from .viewer.export import export_page

        return call.print(export_page(open_sources(paths), export_file, only))
    serve(paths, host, port, open_browser=open_browser)


@cli.group("config")
def config_group() -> None:
    """Show the settings and where each came from."""


@command("show", group=config_group)
@click.argument("section", required=False)
def config_show(call: Call, section: str | None) -> None:
    """Print every setting, or those of SECTION, with its origin (default, FILE:LINE or --set).

    Settings that a training run keeps from its first step on are marked; all others may change when
    the run is resumed.
    """
    from .config import fixed_keys, show

    settings = call.settings
    text = show(settings, section)
    include = None if section is None else {section}
    sections = settings.value.effective().model_dump(mode="json", include=include)
    keys = {f"{name}.{key}" for name, content in sections.items() for key in content}
    content = {
        "settings": sections,
        "origins": {key: origin for key, origin in settings.origins.items() if key in keys},
        "fixed_once_begun": [key for key in fixed_keys(type(settings.value)) if key in keys],
    }
    call.print(Facts(content, text))


@command("describe", group=config_group)
@click.argument("key")
def config_describe(call: Call, key: str) -> None:
    """Print what KEY (section.key, or a section) means, its allowed values, default and value."""
    from dataclasses import asdict

    from .config import describe

    found = describe(call.settings, key)
    text = "\n\n".join(one.text() for one in found)
    call.print(Facts({"keys": [asdict(one) for one in found]}, text))


@command("schema", group=config_group)
def config_schema(call: Call) -> None:
    """Print the JSON schema of the YAML file, descriptions included (for editors)."""
    click.echo(json.dumps(type(call.value).model_json_schema(), indent=1))


@command("demo", config="demo")
@click.option(
    "--output",
    metavar="DIR",
    default="demo-out",
    show_default=True,
    help="Folder for all that it makes.",
)
def demo(call: Call, output: str) -> None:
    """Draw a small COCO data set and run the full pipeline on it: prepare, train, infer, eval."""
    # OpenMP's threads spin while they wait for each other. Beside other programs that made training
    # three times slower; asleep earlier, they cost a few percent where the cores are idle.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from .demo.run import plan_demo, run_demo

    plan = plan_demo(call.value, output)
    call.print(plan if call.dry_run else run_demo(plan, progress=_progress(), say=_log))


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
        _log("interrupted; run the same command again to resume")
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
    section = command.section if isinstance(command, _SettingsCommand) else str(command.name)
    name = error.option_name.lstrip("-").replace("-", "_")
    for key in meant_by(f"{section}.{name}", Settings):
        options = command.get_params(error.ctx)
        flags = [one.opts[0] for one in options if f"{section}.{one.name}" == key]
        use = flags[0] if flags else f"--set {key}=VALUE"
        return click.UsageError(f"No such option {error.option_name!r}. Use {use}.", error.ctx)
    return error


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _speak() -> None:
    """Send our own log to stderr, and let names that are not valid UTF-8 through to stdout."""
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
