"""Whatever ends an inference, the same call completes it to the same bytes."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest
from cocoseg.errors import CocosegError, ConfigError, DataError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.predict import outputs
from cocoseg.infer.predict.progress import Progress
from cocoseg.infer.predict.run import predict
from cocoseg.model.config import ModelConfig
from cocoseg.storage import LocalPath, locate
from cocoseg.storage.output import OutputFolder, held
from PIL import Image
from warm import COMMAND

FLAGS = {
    "use_tta": False, "batch_size": 2, "color": True, "confidence": True, "coco_json": True,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(draw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress") / "photos"
    folder.mkdir()
    for i in range(13):
        Image.fromarray(draw(40 + 3 * i, 60, seed=i)).save(folder / f"{i:02d}.png")
    return folder


def config_of(photos, checkpoint, out, **more):
    return InferConfig(
        checkpoint=str(checkpoint), input=str(photos), output=str(out), **{**FLAGS, **more}
    )


def content(folder):
    """Every file's bytes, settings left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "classes.json", ".files.json")
    }


@pytest.fixture(scope="module")
def whole(photos, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    predict(config_of(photos, checkpoint, out), ModelConfig())
    return content(out)


def test_a_finished_run_holds_no_notes(whole):
    kinds = {name.split("/")[0] for name in whole if "/" in name}
    assert kinds == {"color", "confidence"}
    assert len(whole) == 3 * 13 + 2


def test_a_finished_run_is_left_alone(photos, checkpoint, tmp_path, whole, monkeypatch):
    config = config_of(photos, checkpoint, tmp_path)
    assert predict(config, ModelConfig()).kept == 0
    monkeypatch.setattr(outputs.Outputs, "write", None)
    assert predict(config, ModelConfig()).kept == 13
    assert content(tmp_path) == whole


def dying_after(last):
    """Publish files, and no more once `last` is there."""
    publish = LocalPath.publish_bytes

    def publish_and_die(self, content):
        publish(self, content)
        if self.name == last:
            raise KeyboardInterrupt

    return publish_and_die


def test_a_kill_between_the_list_and_the_end_of_the_notes(
    photos, checkpoint, tmp_path, whole, monkeypatch
):
    config = config_of(photos, checkpoint, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LocalPath, "publish_bytes", dying_after("predictions.jsonl"))
        with pytest.raises(KeyboardInterrupt):
            predict(config, ModelConfig())
    assert (tmp_path / ".progress").exists()
    assert (tmp_path / "predictions.jsonl").exists()
    assert predict(config, ModelConfig()).kept == 13
    assert content(tmp_path) == whole


def full_after(photographs):
    """Write the files of some photographs, and find the disk full then."""
    written = []
    write = outputs.Outputs.write

    def counted(self, name, *more):
        if len(written) == photographs:
            raise OSError(28, os.strerror(28))
        written.append(name)
        return write(self, name, *more)

    return counted


def test_what_is_done_is_kept_and_the_rest_is_completed(
    photos, checkpoint, tmp_path, whole, monkeypatch
):
    config = config_of(photos, checkpoint, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "write", full_after(9))
        with pytest.raises(
            CocosegError, match="No space left on device; what is done is kept; make"
        ):
            predict(config, ModelConfig())
    assert not (tmp_path / "predictions.jsonl").exists()
    done = len(list((tmp_path / ".progress").glob("*.json")))
    assert 1 <= done <= 4
    result = predict(config, ModelConfig())
    assert (result.images, result.kept) == (13, 2 * done)
    assert content(tmp_path) == whole


def test_every_rank_claims_the_files_of_all(tmp_path):
    """The others of a run looked before the first one claimed."""
    first, second = (
        OutputFolder(locate(tmp_path), "inference", ["a.png", "b.png"], "photos") for _ in range(2)
    )
    first.claim()
    for name in ("a.png", ".files.json"):
        (tmp_path / name).unlink(missing_ok=True)
    second.renew()
    (tmp_path / "a.png").write_bytes(b"x")
    OutputFolder(locate(tmp_path), "inference", ["a.png"], "photos").refuse_foreign_files()


@pytest.mark.parametrize("after", [1, 3, 5, 9, 12])
def test_an_output_that_is_deleted_meanwhile_is_completed_by_the_same_command(
    photos, checkpoint, tmp_path, whole, monkeypatch, after
):
    """Whatever was written before, or after."""
    out, written = tmp_path / "out", []
    config = config_of(photos, checkpoint, out)
    write = outputs.Outputs.write

    def deletes(self, name, *more):
        written.append(name)
        if len(written) == after:
            shutil.rmtree(out, ignore_errors=True)
        return write(self, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "write", deletes)
        with pytest.raises(CocosegError, match="run the same command again") as raised:
            predict(config, ModelConfig())
    assert raised.value.exit_code == 1
    predict(config, ModelConfig())
    assert content(out) == whole


def test_a_second_inference_into_the_folder_is_refused(photos, checkpoint, tmp_path, whole):
    config = config_of(photos, checkpoint, tmp_path)
    with held(locate(tmp_path), "cocoseg infer"):
        with pytest.raises(ConfigError, match=r"'cocoseg infer' \(process \d+\) is at work in it"):
            predict(config, ModelConfig())
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    predict(config, ModelConfig())
    assert content(tmp_path) == whole


def test_other_settings_predict_anew(photos, checkpoint, tmp_path, whole):
    predict(config_of(photos, checkpoint, tmp_path, use_tta=True), ModelConfig())
    assert content(tmp_path) != whole
    assert predict(config_of(photos, checkpoint, tmp_path), ModelConfig()).kept == 0
    assert content(tmp_path) == whole


def test_a_photograph_that_changed_is_predicted_anew_with_its_batch(
    photos, checkpoint, tmp_path, draw
):
    own = shutil.copytree(photos, tmp_path / "photos")
    config = config_of(own, checkpoint, tmp_path / "out", coco_json=False)
    predict(config, ModelConfig())
    before = content(tmp_path / "out")
    Image.fromarray(draw(33, 44, seed=99)).save(own / "04.png")
    assert predict(config, ModelConfig()).kept == 11
    after = content(tmp_path / "out")
    changed = {name for name in after if after[name] != before[name]}
    assert {"04.png", "color/04.png", "predictions.jsonl"} <= changed
    assert not [name for name in changed if name.startswith("0") and name[:2] not in ("04", "05")]
    Image.fromarray(draw(33, 44, seed=7)).save(own / "99.png")  # one more: fewer than a batch
    assert predict(config, ModelConfig()).kept == 12


def test_unreadable_photographs_are_tried_again(photos, checkpoint, tmp_path, whole):
    own = shutil.copytree(photos, tmp_path / "photos")
    good = (own / "05.png").read_bytes()
    (own / "05.png").write_bytes(good[:100])
    config = config_of(own, checkpoint, tmp_path / "out", coco_json=False)
    result = predict(config, ModelConfig())
    assert (result.images, len(result.unreadable)) == (12, 1)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [("error" in json.loads(line)) for line in lines].count(True) == 1
    (own / "05.png").write_bytes(good)
    result = predict(config, ModelConfig())
    assert (result.images, result.kept, result.unreadable) == (13, 11, ())
    names = {name for name in whole if name.endswith(".png")}
    assert {name: content(tmp_path / "out")[name] for name in names} == {
        name: whole[name] for name in names
    }


def test_files_of_others_are_never_replaced(run_cocoseg, photos, checkpoint, tmp_path):
    names = ("03.png", "config.yaml", "coco.json", "color/03.png", "predictions.jsonl")
    for number, name in enumerate((*names, ".files.json")):
        out = tmp_path / f"of-{number}"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(b"mine")
        (out / "notes.txt").write_bytes(b"mine, too")
        flags = ("--checkpoint", checkpoint, "--input", photos, "--output", out)
        ran = run_cocoseg("infer", "--no-tta", "--color", "--coco-json", *flags)
        assert ran.code == 2
        assert f"{name} is there, and not of an inference" in ran.err
        assert content(out).keys() <= {name, "notes.txt"}
        assert (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["infer", "eval"])
@pytest.mark.parametrize("form", ["absolute", "above", "through a subfolder", "of another type"])
def test_a_list_of_files_that_leads_out_of_the_output_removes_nothing(
    run_cocoseg, golden, checkpoint, tmp_path, command, form
):
    victim, out = tmp_path / "victims" / "victim", tmp_path / "out"
    files = {
        "absolute": [str(victim)],
        "above": ["../victims/victim"],
        "through a subfolder": ["sub/../../victims/victim"],
        "of another type": [["a"], 1],
    }[form]
    for folder in (victim.parent, out):
        folder.mkdir()
    victim.write_bytes(b"mine")
    kind = {"infer": "inference", "eval": "evaluation"}[command]
    ledger = json.dumps({"of": kind, "input": str(golden.shards("val")), "files": files})
    (out / ".files.json").write_text(ledger)
    source = {"infer": "--input", "eval": "--shards"}[command]
    flags = ("--checkpoint", checkpoint, source, golden.shards("val"), "--output", out)
    ran = run_cocoseg(command, "--no-tta", *flags)
    assert (ran.code, f".files.json is there, and not of an {kind}" in ran.err) == (2, True)
    assert victim.read_bytes() == b"mine"
    assert (out / ".files.json").read_text() == ledger


def test_files_of_others_that_came_later_are_never_replaced(photos, checkpoint, tmp_path):
    config = config_of(photos, checkpoint, tmp_path, color=False)
    predict(config, ModelConfig())
    (tmp_path / "color").mkdir()
    (tmp_path / "color" / "02.png").write_bytes(b"mine")
    (tmp_path / "99.png").write_bytes(b"mine")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"color/02\.png is there, and not of an inference"):
        predict(config_of(photos, checkpoint, tmp_path), ModelConfig())
    assert content(tmp_path) == before
    predict(config_of(photos, checkpoint, tmp_path, color=False, confidence=False), ModelConfig())
    assert (tmp_path / "99.png").read_bytes() == b"mine"
    assert (tmp_path / "color" / "02.png").read_bytes() == b"mine"
    assert not (tmp_path / "confidence").exists()


@pytest.mark.parametrize(
    "lost",
    [
        "05.png",
        "color/05.png",
        "confidence/12.png",
        "coco.json",
        "config.yaml",
        "classes.json",
        "predictions.jsonl",
    ],
)
def test_what_was_removed_is_made_again(photos, checkpoint, tmp_path, whole, lost):
    config = config_of(photos, checkpoint, tmp_path)
    predict(config, ModelConfig())
    (tmp_path / lost).unlink()
    result = predict(config, ModelConfig())
    kept = {"05.png": 11, "color/05.png": 11, "confidence/12.png": 12, "config.yaml": 13}
    kept["classes.json"] = 13
    assert (result.images, result.kept) == (13, kept.get(lost, 0))
    assert content(tmp_path) == whole
    assert (tmp_path / "config.yaml").exists()


def test_what_was_removed_while_a_run_was_stopped_is_made_again(
    photos, checkpoint, tmp_path, whole, monkeypatch
):
    config = config_of(photos, checkpoint, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "finish", None)
        with pytest.raises(TypeError):
            predict(config, ModelConfig())
    (tmp_path / "color" / "00.png").unlink()
    assert predict(config, ModelConfig()).kept == 11
    assert content(tmp_path) == whole


def test_nothing_of_earlier_settings_or_photographs_is_left(photos, checkpoint, tmp_path, draw):
    own = shutil.copytree(photos, tmp_path / "photos")
    (own / "deep" / "er").mkdir(parents=True)
    (own / "03.png").rename(own / "deep" / "er" / "03.png")
    out = tmp_path / "out"
    predict(config_of(own, checkpoint, out, overlay=True, probabilities=True), ModelConfig())
    assert (out / "probabilities" / "deep" / "er" / "03.npy").exists()
    (own / "deep" / "er" / "03.png").unlink()
    (own / "04.png").write_bytes(b"no photograph any more")
    (own / "05.png").write_bytes((own / "06.png").read_bytes())
    plain = {"color": False, "confidence": False, "coco_json": False}
    result = predict(config_of(own, checkpoint, out, **plain), ModelConfig())
    assert (result.images, len(result.unreadable)) == (11, 1)
    names = [f"{i:02d}.png" for i in range(13) if i not in (3, 4)]
    assert sorted(content(out)) == [*names, "predictions.jsonl"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == set()
    fresh = tmp_path / "fresh"
    predict(config_of(own, checkpoint, fresh, **plain), ModelConfig())
    assert content(out) == content(fresh)
    assert (out / ".files.json").read_bytes() == (fresh / ".files.json").read_bytes()


def test_nothing_of_a_killed_run_of_other_settings_is_left(
    photos, checkpoint, tmp_path, monkeypatch
):
    plain = config_of(photos, checkpoint, tmp_path, color=False, confidence=False)
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "write", full_after(5))
        with pytest.raises(CocosegError):
            predict(config_of(photos, checkpoint, tmp_path, overlay=True), ModelConfig())
    assert list((tmp_path / "overlay").iterdir())
    predict(plain, ModelConfig())
    assert {name for name in content(tmp_path) if "/" in name} == set()


def test_what_a_run_of_other_settings_overwrote_is_not_taken_for_done(
    photos, checkpoint, tmp_path, whole, monkeypatch
):
    for written, more in ((9, {}), (5, {"ids": "coco"})):
        with monkeypatch.context() as patch:
            patch.setattr(outputs.Outputs, "write", full_after(written))
            with pytest.raises(CocosegError):
                predict(config_of(photos, checkpoint, tmp_path, **more), ModelConfig())
    predict(config_of(photos, checkpoint, tmp_path), ModelConfig())
    assert content(tmp_path) == whole


def test_masks_of_another_input_are_not_lost(run_cocoseg, photos, checkpoint, tmp_path):
    def run(source, *flags):
        return run_cocoseg(
            *("infer", "--no-tta", "--checkpoint", checkpoint, "--input", source),
            *("--output", tmp_path / "out", *flags),
        )

    assert run(photos / "01.png", "--color").code == 0
    before = content(tmp_path / "out")
    for flags in ((), ("--dry-run",)):
        ran = run(photos / "02.png", *flags)
        assert ran.code == 2
        assert f"masks of another --input, {photos / '01.png'}" in ran.err
        assert "would be removed: 01.png; choose" in ran.err
        assert content(tmp_path / "out") == before
    ran = run(f"{photos}/0[0-2].png")
    assert ran.code == 0  # no mask is lost
    assert "out: 1 files of an earlier run are removed" in ran.err
    assert set(content(tmp_path / "out")) == {
        "00.png", "01.png", "02.png", "predictions.jsonl",
    }  # fmt: skip
    ran = run(photos / "01.png")
    assert (ran.code, "would be removed: 00.png and 1 more" in ran.err) == (2, True)


def test_outlines_of_batches_that_stay_are_kept(photos, checkpoint, tmp_path, draw):
    own = shutil.copytree(photos, tmp_path / "photos")
    predict(config_of(own, checkpoint, tmp_path / "out"), ModelConfig())
    Image.fromarray(draw(33, 44, seed=99)).save(own / "04.png")
    assert predict(config_of(own, checkpoint, tmp_path / "out"), ModelConfig()).kept == 11
    predict(config_of(own, checkpoint, tmp_path / "fresh"), ModelConfig())
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("there", "said"), [("deep", "deep is a file"), ("00.png/a", "00.png is a folder")]
)
def test_a_file_where_a_folder_is_needed_is_refused(
    photos, checkpoint, tmp_path, draw, there, said
):
    own = shutil.copytree(photos, tmp_path / "photos")
    (own / "deep").mkdir()
    (own / "01.png").rename(own / "deep" / "01.png")
    (tmp_path / "out" / there).parent.mkdir(parents=True)
    (tmp_path / "out" / there).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=said):
        predict(config_of(own, checkpoint, tmp_path / "out"), ModelConfig())
    assert content(tmp_path / "out") == {there: b"mine"}


def test_files_behind_another_name_of_a_folder_are_seen(photos, checkpoint, tmp_path):
    out = tmp_path / "out"
    (out / "color").mkdir(parents=True)
    (out / "color" / "03.png").write_bytes(b"mine")
    for name in ("a", "latest", "z"):
        (out / name).symlink_to("color")
    config = config_of(photos, checkpoint, out)
    with pytest.raises(ConfigError, match=r"color/03\.png is there"):
        predict(config, ModelConfig())
    assert (out / "color" / "03.png").read_bytes() == b"mine"
    (out / "color" / "03.png").unlink()
    predict(config, ModelConfig())
    assert predict(config, ModelConfig()).kept == 13
    predict(config_of(photos, checkpoint, out, color=False), ModelConfig())
    assert not (out / "color").exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_not_replaced_either(photos, checkpoint, tmp_path, kind):
    there = tmp_path / "03.png"
    if kind == "link":
        there.symlink_to("/nowhere/03.png")
    else:
        os.mkfifo(there)
    with pytest.raises(ConfigError, match=r"03\.png is there"):
        predict(config_of(photos, checkpoint, tmp_path), ModelConfig())
    assert (there.is_symlink(), there.is_fifo()) == (kind == "link", kind == "pipe")


def test_half_written_files_of_others_stay(photos, checkpoint, tmp_path, whole):
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (out / ".progress").mkdir(parents=True)
    (out / "link").symlink_to(outside)
    others = [out / ".tmp-notes", outside / ".tmp-1-1", out / ".tmp-7-abc"]
    ours = [out / ".tmp-1-2", out / ".progress" / ".tmp-3-4"]
    for path in (*others, *ours):
        path.write_bytes(b"half")
    predict(config_of(photos, checkpoint, out), ModelConfig())
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in ours)


@pytest.mark.parametrize("name", ["notes.txt", "deep/0123456789abcdef.json", "plan.json"])
def test_a_folder_of_notes_of_others_is_refused(photos, checkpoint, tmp_path, name):
    (tmp_path / ".progress" / name).parent.mkdir(parents=True)
    (tmp_path / ".progress" / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f".progress/{name} is there"):
        predict(config_of(photos, checkpoint, tmp_path), ModelConfig())
    assert content(tmp_path) == {f".progress/{name}": b"mine"}


def test_nothing_is_removed_below_a_folder_that_became_a_link(photos, checkpoint, tmp_path):
    out, hand = tmp_path / "out", tmp_path / "hand"
    predict(config_of(photos, checkpoint, out), ModelConfig())
    (out / "color").rename(hand)
    (out / "color").symlink_to(hand)
    before = content(hand)
    predict(config_of(photos, checkpoint, out, color=False), ModelConfig())
    assert content(hand) == before


def test_when_all_photographs_become_unreadable_the_masks_stay(photos, checkpoint, tmp_path):
    own = shutil.copytree(photos, tmp_path / "photos")
    config = config_of(own, checkpoint, tmp_path / "out")
    predict(config, ModelConfig())
    masks = {name for name in content(tmp_path / "out") if name.endswith(".png")}
    for path in own.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image could be read"):
        predict(config, ModelConfig())
    assert masks <= content(tmp_path / "out").keys()
    for path in photos.iterdir():
        shutil.copy2(path, own)
    assert predict(config, ModelConfig()).images == 13


EDITS = {
    "a line less": lambda lines: lines[:4] + lines[5:],
    "a line twice": lambda lines: [lines[0], *lines],
    "no batch": lambda lines: [*lines[:3], '{"image": "a"}', *lines[4:]],
    "no object": lambda lines: ["[1]", *lines],
    "no JSON": lambda lines: [*lines, "{"],
    "another photograph": lambda lines: [lines[1], *lines[1:]],
    "nothing": lambda lines: [],
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("touched", [False, True])
def test_a_list_that_was_edited_is_made_again(photos, checkpoint, tmp_path, edit, touched):
    own = shutil.copytree(photos, tmp_path / "photos")
    config = config_of(own, checkpoint, tmp_path / "out")
    predict(config, ModelConfig())
    if touched:
        (own / "12.png").touch()
    before = content(tmp_path / "out")
    listed = tmp_path / "out" / "predictions.jsonl"
    lines = EDITS[edit](listed.read_text().splitlines())
    listed.write_text("".join(f"{line}\n" for line in lines))
    result = predict(config, ModelConfig())
    assert result.images == 13
    assert result.kept < 13
    after = content(tmp_path / "out")
    if touched:  # in the list's IDs
        del before["predictions.jsonl"], after["predictions.jsonl"]
    assert after == before


def test_one_photograph_is_not_replaced_by_its_mask(run_cocoseg, photos, checkpoint, tmp_path):
    own = shutil.copytree(photos, tmp_path / "photos")
    before = content(own)
    ran = run_cocoseg(
        "infer", "--checkpoint", checkpoint, "--input", own / "03.png", "--output", own
    )
    assert ran.code == 2
    assert content(own) == before


def command(photos, checkpoint, out, *before, **more):
    settings = {**FLAGS, **more}
    sets = (f"--set=infer.{key}={str(value).lower()}" for key, value in settings.items())
    return [
        *before, "-m", "cocoseg", "infer", "--checkpoint", str(checkpoint),
        "--input", str(photos), "--output", str(out), *sets,
    ]  # fmt: skip


def test_two_processes_predict_each_photograph_once(warm, photos, checkpoint, tmp_path, whole):
    arguments = command(photos, checkpoint, tmp_path)[2:]  # without -m cocoseg
    ran = warm.start(2, COMMAND, *arguments)
    out, err = ran.communicate()
    assert ran.returncode == 0, err
    assert out.count("images") == 1  # rank 0 reports
    assert content(tmp_path) == whole


# ---- kills

_SERVER = """
import itertools, json, os, re, signal, sys, threading
from importlib import import_module
import cocoseg.infer.predict.run, cocoseg.settings, torch, transformers
from transformers import SegformerForSemanticSegmentation
from cocoseg import cli

torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(owner, function, where, after, call, delay):
    module, _, name = owner.partition(":")
    owner = getattr(import_module(module), name) if name else import_module(module)
    original, calls = getattr(owner, function), itertools.count(1)  # next() is atomic

    def act():
        if delay:
            timer = threading.Timer(delay, die)
            timer.daemon = True
            timer.start()
        else:
            die()

    def wrapped(*args, **more):
        named = " ".join(str(one) for one in args if not isinstance(one, bytes))
        here = re.search(where, named) and next(calls) == call
        if here and not after:
            act()
        result = original(*args, **more)
        if here and after:
            act()
        return result

    setattr(owner, function, wrapped)

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        os.dup2(2, 1)
        kill_at(**request["kill"])
        sys.argv = ["cocoseg", *request["arguments"]]
        cli.main()
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Point(NamedTuple):
    """A moment: before or after a call of a function with such arguments."""

    owner: str
    """``module:class``"""
    function: str
    where: str
    """What the paths among its arguments, joined by spaces, must match."""
    after: bool = False
    calls: int = 1
    """How often a run passes it, at most."""


LOCAL = "cocoseg.storage.local:LocalPath"
NOTE = r"[0-9a-f]{16}\.json$"
PUBLISHED = {
    "ledger": (r"/\.files\.json$", 1),
    "settings": (r"/config\.yaml$", 1),
    "file": (r"\.png$", 39),
    "note": (rf"/\.progress/{NOTE}", 7),
    "coco": (r"/coco\.json$", 1),
    "list": (r"/predictions\.jsonl$", 1),
}
POINTS = {
    f"{name} {moment}": Point(*function, where, moment == "written", calls)
    for name, (where, calls) in PUBLISHED.items()
    for moment, function in {
        "unwritten": (LOCAL, "publish_bytes"),
        "half-way": ("os", "replace"),  # the temporary file is written, but not yet renamed
        "written": (LOCAL, "publish_bytes"),
    }.items()
} | {
    "list removed": Point(
        "cocoseg.storage.local:LocalPath", "remove", r"/predictions\.jsonl$", after=True
    ),
    "notes there": Point("cocoseg.storage.local:LocalPath", "remove", r"/\.progress$"),
    "remove note": Point("os", "unlink", rf"(^|/){NOTE}", calls=7),
    "remove left-over": Point("os", "unlink", r"/(color|overlay)/[^/]+\.png$", calls=13),
}


class Server:
    """Runs commands that are killed, each forked from a process that has imported everything."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, arguments, name, call, delay=0.0):
        """Run a command until the n-th pass of a point; return its exit code."""
        point = POINTS[name]
        kill = {
            "owner": point.owner, "function": point.function, "where": point.where,
            "after": point.after, "call": call, "delay": delay,
        }  # fmt: skip
        request = {"arguments": arguments, "kill": kill}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.kill()
    server.process.communicate()


def temporary(out):
    return [str(path.relative_to(out)) for path in out.rglob(".tmp-*")]


def noted(out):
    """Return the files of the batches that have a note."""
    return {
        record[kind]
        for path in (out / ".progress").glob("*.json")
        for record in json.loads(path.read_text())
        for kind in ("mask", "color", "confidence")
    }


def identities(out, names):
    """Return what changes when a file is written again."""
    return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}


def check_complete(out, whole, told=""):
    """Compare a folder with that of a run that was not killed; no other file may be in it."""
    found = content(out)
    assert [name for name in {*found, *whole} if found.get(name) != whole.get(name)] == [], told
    assert not (out / ".progress").exists(), told
    listed = set(json.loads((out / ".files.json").read_text())["files"])
    assert listed == {"config.yaml", "classes.json", *whole}, told


def test_kills_at_every_stage_change_no_byte(server, photos, checkpoint, tmp_path, whole):
    """Each command resumes what the one before left, and is killed at a later stage."""
    out, keep = tmp_path / "out", {}
    for name, call in (
        ("ledger half-way", 1),
        ("note unwritten", 1),
        ("file half-way", 8),
        ("note half-way", 2),
        ("note written", 2),
        ("coco half-way", 1),
        ("list unwritten", 1),
        ("list written", 1),
        ("remove note", 4),
        ("note written", 3),  # of the 7 that are restored from the list
        ("list removed", 1),
    ):
        code = server.run(command(photos, checkpoint, out)[2:], name, call)
        assert code == -signal.SIGKILL, (name, call)
        assert (out / ".progress").exists(), (name, call)
        assert temporary(out) or not name.endswith("half-way"), (name, call)
        assert identities(out, keep) == keep, (name, call)
        keep |= identities(out, noted(out))
    assert len(keep) == 3 * 13
    result = predict(config_of(photos, checkpoint, out), ModelConfig())
    assert (result.images, result.kept) == (13, 13)
    assert identities(out, keep) == keep
    check_complete(out, whole)


COLOR_OF_IDS = {"overlay": True, "ids": "coco"}
PLAIN_IDS = {"color": False, "coco_json": False, "ids": "coco"}
OTHERS = ({}, {"color": False}, COLOR_OF_IDS, {"coco_json": False})


def test_kills_of_runs_of_changing_settings_leave_nothing(
    server, photos, checkpoint, tmp_path, whole
):
    """Neither notes nor lists of earlier settings vouch for files that others overwrote."""
    out = tmp_path / "out"
    predict(config_of(photos, checkpoint, out), ModelConfig())
    for settings, name, call in (
        (COLOR_OF_IDS, "file written", 4),
        ({}, "note written", 3),
        (COLOR_OF_IDS, "remove note", 2),  # of the 3
        (COLOR_OF_IDS, "note written", 1),
        (PLAIN_IDS, "remove left-over", 3),
    ):
        code = server.run(command(photos, checkpoint, out, **settings)[2:], name, call)
        assert code == -signal.SIGKILL, (settings, name, call)
        assert (out / ".progress").exists(), (settings, name, call)
        assert not (out / "predictions.jsonl").exists(), (settings, name, call)
    predict(config_of(photos, checkpoint, out), ModelConfig())
    check_complete(out, whole)


def kill_at_random(server, photos, checkpoint, out, whole, seed, others):
    """Kill commands at random points, some a little later; return how many were amid the work."""
    dice, amid, told = random.Random(seed), 0, [f"seed {seed}"]
    for _ in range(5):
        settings, name = dice.choice(others), dice.choice(list(POINTS))
        call = dice.randint(1, POINTS[name].calls)
        delay = dice.choice((0.0, dice.uniform(0, 0.02)))  # s
        told.append((settings, name, call, delay))
        code = server.run(command(photos, checkpoint, out, **settings)[2:], name, call, delay)
        assert code in (0, -signal.SIGKILL), told
        amid += code == -signal.SIGKILL and (out / ".progress").exists()
        if not (out / ".progress").exists() and len(others) == 1:
            break  # it is complete
    predict(config_of(photos, checkpoint, out), ModelConfig())
    check_complete(out, whole, told)
    return amid


@pytest.mark.long
@pytest.mark.parametrize("others", [({},), OTHERS], ids=["same", "changing"])
def test_kills_at_random_points_change_no_byte(
    server, photos, checkpoint, tmp_path, whole, record_property, others
):
    amid = 0
    for seed in itertools.count():
        out = tmp_path / str(seed)
        amid += kill_at_random(server, photos, checkpoint, out, whole, seed, others)
        if amid >= 50:
            break
    kind = "runs of changing" if len(others) > 1 else "runs of the same"
    record_property("figure", f"infer: {amid} random SIGKILLs amid {kind} settings: same bytes")
