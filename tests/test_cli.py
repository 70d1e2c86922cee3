"""Every command line ends in its exit code, one clear message, and no traceback."""

import json
import re
import subprocess
import sys

import pytest
from cocoseg import __version__
from cocoseg.cli import cli
from cocoseg.settings import Settings

COMMANDS = [
    *("prepare", "verify", "index", "train", "infer", "eval", "demo", "doctor", "view"),
    *(
        "config show",
        "config describe",
        "config schema",
        "export hf",
        "export onnx",
        "export program",
    ),
]


def test_the_commands_are_these():
    groups = {
        name: command for name, command in cli.commands.items() if hasattr(command, "commands")
    }
    found = [name for name in cli.commands if name not in groups]
    found += [f"{name} {sub}" for name, group in groups.items() for sub in group.commands]
    assert sorted(COMMANDS) == sorted(found)


@pytest.mark.parametrize("command", ["", *COMMANDS, "config", "export"])
def test_help_of_every_command_fits_a_terminal_and_is_no_error(run_cocoseg, command):
    for flag in ("--help", "-h"):
        ran = run_cocoseg(*command.split(), flag)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith("Usage: ")
        assert max(map(len, ran.out.splitlines())) <= 100
        assert "\\b" not in ran.out
    if command not in ("", "config", "export"):
        for option in ("--config", "--set", "--dry-run", "--json"):
            assert option in ran.out


def test_version(run_cocoseg):
    ran = run_cocoseg("--version")
    assert (ran.code, ran.out) == (0, f"cocoseg, version {__version__}\n")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "a.json").write_text('{"annotations": "none"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("id,name\n1,cat\n")
    (tmp_path / "bad.yaml").write_text("train:\n  batch_sise: 4\n")
    (tmp_path / "empty").mkdir()
    return folder


BAD = {
    "no such command": ("prepair", 2, "No such command 'prepair'"),
    "no such flag": ("prepare --annotation x", 2, "--annotations"),
    "setting as a flag": ("train --epochs 3", 2, "'--epochs'. Use --set train.epochs=VALUE."),
    "synonym as a flag": ("eval --bs 3", 2, "'--bs'. Use --batch-size."),
    "flag of another name": ("train --output-dir x", 2, "'--output-dir'. Use --output."),
    "no such section": ("config show trian", 2, "trian: no such section; there are prepare, "),
    "no such key": ("config describe lr", 2, "unknown key 'lr'. Did you mean 'train.learning_rate"),
    "flag of another command": ("verify . --workers 2", 2, "No such option"),
    "flag without value": ("prepare --output", 2, "requires an argument"),
    "argument missing": ("verify", 2, "Missing argument 'SHARDS'"),
    "argument too many": ("prepare x", 2, "unexpected extra argument"),
    "no number": ("prepare --workers many", 2, "'many' is not a valid integer"),
    "no choice": ("prepare --overlap biggest", 2, "'biggest' is not one of 'area', 'order'"),
    "number too small": ("prepare --samples-per-shard 0", 2, "from --samples-per-shard"),
    "negative number": ("prepare --max-bad=-1", 2, "from --max-bad"),
    "unknown key": ("prepare --set prepare.overlop=order", 2, "Did you mean 'prepare.overlap'?"),
    "key without section": (
        "train --set batch_size=4",
        2,
        "'train.batch_size' or 'infer.batch_size'?",
    ),
    "set without value": ("prepare --set prepare.overlap", 2, "section.key=value"),
    "wrong type": ("config show --set train.batch_size=big", 2, "train.batch_size"),
    "wrong type of a section": ("config show --set train=5", 2, "unknown key 'train'"),
    "unknown key in the YAML": ("train --config {t}/bad.yaml", 2, "bad.yaml:2"),
    "no such config": ("train --config {t}/absent.yaml", 2, "no such file"),
    "nothing to prepare": ("prepare --output {t}/s", 2, "--annotations"),
    "no output": ("prepare --annotations {t}/a.json --images {t}/images", 2, "--output"),
    "no pair": ("prepare --annotations {t}/a.json --output {t}/s", 2, "come in pairs"),
    "no such JSON": (
        "prepare --annotations {t}/absent.json --images {t}/images --output {t}/s",
        2,
        "absent.json: no such file",
    ),
    "no such image folder": (
        "prepare --annotations {t}/a.json --images {t}/absent --output {t}/s",
        2,
        "absent: no such folder, tar or zip",
    ),
    "JSON that is not COCO": (
        "prepare --annotations {t}/a.json --images {t}/images --output {t}/s",
        3,
        "$.categories is missing",
    ),
    "JSON that is a list": (
        "prepare --annotations {t}/list.json --images {t}/images --output {t}/s",
        3,
        "is not COCO",
    ),
    "no JSON": (
        "prepare --annotations {t}/text.json --images {t}/images --output {t}/s",
        3,
        "is not JSON",
    ),
    "no JSON, dry run": (
        "prepare --annotations {t}/text.json --images {t}/images --output {t}/s --dry-run",
        3,
        "is not JSON",
    ),
    "verify nothing": ("verify {t}/absent", 2, "absent: no such folder"),
    "verify no shards": ("verify {t}/empty", 3, "manifest.json"),
    "verify no shards, dry run": ("verify {t}/empty --dry-run", 3, "manifest.json"),
}


@pytest.mark.parametrize(("line", "code", "message"), BAD.values(), ids=BAD)
def test_bad_usage_ends_in_one_clear_message_and_its_exit_code(
    run_cocoseg, images, tmp_path, line, code, message
):
    ran = run_cocoseg(*(word.format(t=tmp_path) for word in line.split()))
    assert (ran.code, ran.out) == (code, ""), ran
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert len(re.findall("(?i)^error: ", ran.err, re.MULTILINE)) == 1
    assert not (tmp_path / "s").exists()


def test_a_bug_of_ours_is_no_message_for_users(run_cocoseg, monkeypatch):
    monkeypatch.setattr("cocoseg.shards.verify.verify", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cocoseg("verify", ".")


def test_an_interruption_is_130_and_says_how_to_go_on(run_cocoseg, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cocoseg.shards.verify.verify", interrupted)
    ran = run_cocoseg("verify", ".")
    assert (ran.code, ran.out) == (130, "")
    assert "run the same command again" in ran.err


def test_a_dry_run_prints_the_plan_and_does_nothing(run_cocoseg, golden, tmp_path):
    flags = ("--annotations", golden.annotations("train"), "--images", golden.images("train"))
    flags += ("--output", tmp_path / "shards", "--samples-per-shard", 3, "--dry-run")
    ran = run_cocoseg("prepare", *flags)
    assert ran.code == 0
    assert re.search(r"^images +8$", ran.out, re.MULTILINE)
    plan = json.loads(run_cocoseg("prepare", *flags, "--json").out)
    assert (plan["images"], plan["shards"], plan["images_without_annotations"]) == (8, 3, 1)
    assert len(plan["classes"]) == 81
    assert not (tmp_path / "shards").exists()
    ran = run_cocoseg("verify", golden.shards("train"), "--dry-run", "--json")
    assert json.loads(ran.out)["samples"] == 8


def test_prepare_and_verify_print_one_json_object(run_cocoseg, golden, tmp_path):
    flags = ("--annotations", golden.annotations("val"), "--images", golden.images("val"))
    ran = run_cocoseg("prepare", *flags, "--output", tmp_path / "s", "--workers", 1, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["samples"] == 4
    ran = run_cocoseg("verify", tmp_path / "s", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["problems"] == []


def test_the_resolved_settings_lie_beside_the_shards_and_prepare_them_again(
    run_cocoseg, golden, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ("--annotations", golden.annotations("val"), "--images", golden.images("val"))
    run_cocoseg("prepare", *flags, "--output", "first", "--set", "prepare.overlap=order")
    saved = tmp_path / "first" / "config.yaml"
    ran = run_cocoseg("prepare", "--config", saved, "--output", "second")
    assert ran.code == 0
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("first", "second")]
    assert manifests[0] == manifests[1]
    assert json.loads(manifests[0])["settings"]["overlap"] == "order"


def test_config_show_prints_every_key_with_its_origin(run_cocoseg):
    ran = run_cocoseg("config", "show", "--config", "tiny", "--set", "train.seed=5")
    assert ran.code == 0
    assert re.search(r"^  seed: 5 +# --set, fixed once a run has begun$", ran.out, re.MULTILINE)
    assert "# tiny.yaml:" in ran.out
    assert "# default" in ran.out
    shown = json.loads(run_cocoseg("config", "show", "--json").out)
    keys = {f"{s}.{k}" for s, content in shown["settings"].items() for k in content}
    assert keys == set(shown["origins"])
    schema = json.loads(run_cocoseg("config", "schema").out)
    assert set(schema["properties"]) == set(Settings.model_fields)


LIGHT = "import sys\ntry:\n    sys.argv = {argv!r}\n    from cocoseg.cli import main\n    main()\n"
LIGHT += "finally:\n    print(*sorted(sys.modules), file=sys.stderr)\n"


def modules_of(*arguments):
    """Names of the modules that a command line has imported by its end, in a fresh process."""
    code = LIGHT.format(argv=["cocoseg", *map(str, arguments)])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stderr.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    loaded = modules_of("--help")
    heavy = {"torch", "transformers", "webdataset", "albumentations", "cv2", "fsspec"}
    heavy |= {"pydantic", "numpy", "PIL", "yaml", "msgspec", "pycocotools", "tqdm"}
    assert not heavy & loaded


def test_prepare_and_verify_never_import_torch(golden, tmp_path):
    pair = ("--annotations", golden.annotations("val"), "--images", golden.images("val"))
    loaded = modules_of("prepare", *pair, "--output", tmp_path / "s", "--workers", 1)
    loaded |= modules_of("verify", tmp_path / "s")
    assert not {"torch", "webdataset", "transformers", "albumentations"} & loaded


def test_no_worker_of_prepare_imports_torch():
    code = "import sys; from cocoseg.prepare.workers import run_shards\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "webdataset", "fsspec"} & set(ran.stdout.split())
