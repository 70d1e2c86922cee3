"""Whatever became of a checkpoint's files: the one before loads, and nothing good is deleted."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cocoseg.checkpoint import layout
from cocoseg.checkpoint import save as saving
from cocoseg.checkpoint.network import start_network
from cocoseg.checkpoint.state import TrainingProgress, TrainingState
from cocoseg.distributed.group import Group
from cocoseg.errors import CocosegError
from cocoseg.model.config import ModelConfig
from cocoseg.storage import Location, locate, retry
from cocoseg.storage.remote import filesystem
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train import resume

ALONE = Group(0, 1, torch.device("cpu"))
NAMES = (
    *("config.json", "digests.json", "model.safetensors", "preprocessor_config.json"),
    *("taxonomy.json", "training_state.pt"),
)
Save = Callable[[Path | Location, int], None]


@pytest.fixture(scope="module")
def save() -> Save:
    """Save a checkpoint whose weights and state are those of its step alone."""
    taxonomy = coco_taxonomy()
    network, preprocess = start_network(
        ModelConfig(name="segformer-tiny", input_size=32), taxonomy, 0
    )

    def write(run: Path | Location, step: int) -> None:
        with torch.no_grad():
            network.decode_head.classifier.bias.fill_(step)
        state = TrainingState(
            progress=TrainingProgress(step),
            optimizer={"moments": torch.full((100,), float(step))},
            scaler={},
            bad_samples=[{"words": {"a": ["b", None]}}],
            total_steps=9,
            identity={},
            settings={},
        )
        saving.save_checkpoint(locate(run), network, preprocess, taxonomy, state)

    return write


@pytest.fixture(scope="module")
def saved(save: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    for step in (3, 6, 9):
        save(run, step)
    saving.point(locate(run), "best", 3)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 3, 6 and 9, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run", symlinks=True))


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def newest(run: Path | Location) -> int | None:
    with resume.agree_on_newest(locate(run), ALONE) as found:
        return None if found is None else found.state.step


def contents(run: Path) -> dict[str, str]:
    """Every file of every checkpoint → its digest."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file()
    }


def is_whole(run: Path, step: int) -> bool:
    """Tell, without any code of ours, whether all of a checkpoint is there as it was written."""
    folder = folder_of(run, step)
    if sorted(path.name for path in folder.glob("*")) != list(NAMES):
        return False
    digests = json.loads((folder / "digests.json").read_text())
    state = torch.load(folder / "training_state.pt", weights_only=True)
    return state["step"] == step and digests == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in NAMES
        if name != "digests.json"
    }


def leftovers(run: Path) -> list[str]:
    return [
        str(path) for path in run.rglob("*") if ".tmp-" in path.name or ".replaced" in path.name
    ]


# ---- damage

Damage = tuple[str, str, Callable[[Path], None]]
"""What it is called, the file that is named for it, what it does to a run."""


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = folder_of(run, 9) / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def cut(name: str, part: float) -> Damage:
    """Cut a file after a part of its bytes; never its last newline alone."""
    keep = lambda content: content[: int(part * (len(content) - 1))]  # noqa: E731
    return f"cut-{name}-{part:.4f}", name, rewritten(name, keep)


def flip(name: str, part: float, bit: int) -> Damage:
    def change(content: bytes) -> bytes:
        flipped = bytearray(content)
        flipped[int(part * len(content))] ^= 1 << bit
        return bytes(flipped)

    told = "" if name == "digests.json" else name  # a wrong digest accuses another file
    return f"flip-{name}-{part:.4f}-{bit}", told, rewritten(name, change)


def swapped(name: str) -> Damage:
    def damage(run: Path) -> None:
        ours, other = folder_of(run, 9) / name, folder_of(run, 6) / name
        ours.write_bytes(other.read_bytes())

    return f"of-another-{name}", "", damage


def with_digests(what: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def rewrite(content: bytes) -> bytes:
        changed = change(json.loads(content))
        return changed if isinstance(changed, bytes) else json.dumps(changed).encode()

    return f"digests-{what}", "", rewritten("digests.json", rewrite)


def with_state(what: str, content: Callable[[], bytes]) -> Damage:
    """Another training state, with the digest that is right for it."""

    def damage(run: Path) -> None:
        folder = folder_of(run, 9)
        (folder / "training_state.pt").write_bytes(content())
        digests = json.loads((folder / "digests.json").read_text())
        digests["training_state.pt"] = hashlib.sha256(content()).hexdigest()
        (folder / "digests.json").write_text(json.dumps(digests))

    return f"state-{what}", "training_state.pt", damage


def stored(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


class Hostile:
    """Unpickling it creates a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path(os.environ["PYTEST_HOSTILE"])),)


def hostile() -> bytes:
    file = io.BytesIO()
    torch.save({"step": 9, "optimizer": Hostile()}, file, pickle_module=pickle)
    return file.getvalue()


def renamed(run: Path) -> None:
    shutil.rmtree(folder_of(run, 9))
    shutil.copytree(folder_of(run, 6), folder_of(run, 9))


def emptied(run: Path) -> None:
    shutil.rmtree(folder_of(run, 9))
    folder_of(run, 9).mkdir()


def damages() -> list[Damage]:
    dice = random.Random(5)
    found: list[Damage] = []
    for name in NAMES:
        found += [cut(name, part) for part in (0, 0.5, 0.9999)]
        found += [cut(name, dice.random()) for _ in range(8)]
        found += [flip(name, dice.random(), dice.randrange(8)) for _ in range(10)]
        found.append(
            (f"missing-{name}", name, lambda run, n=name: (folder_of(run, 9) / n).unlink())
        )
    found += [swapped(name) for name in ("model.safetensors", "training_state.pt", "digests.json")]
    found.append(("another-folder", "training_state.pt", renamed))
    found.append(("empty-folder", "digests.json", emptied))
    found += [
        with_digests("empty-object", lambda _: {}),
        with_digests("list", lambda digests: list(digests)),
        with_digests("text", lambda digests: "digests"),
        with_digests("number", lambda _: 1),
        with_digests("null", lambda _: None),
        with_digests("html", lambda _: b"<html>404</html>"),
        with_digests("not-utf-8", lambda _: b'{"\xff": 1}'),
        with_digests("deep", lambda _: b"[" * 200_000),
        with_digests("numbers", lambda digests: dict.fromkeys(digests, 5)),
        with_digests("nulls", lambda digests: dict.fromkeys(digests)),
        with_digests("uppercase", lambda digests: {k: v.upper() for k, v in digests.items()}),
        with_digests("outside", lambda digests: digests | {"../last": "0"}),
        with_digests("zero", lambda digests: digests | {"\0": "0"}),
        with_digests("one-more", lambda digests: digests | {"model-2.safetensors": "0"}),
        *(
            with_digests(f"without-{name}", lambda d, n=name: {k: d[k] for k in d if k != n})
            for name in NAMES
            if name != "digests.json"
        ),
        with_state("of-another-step", lambda: stored({"step": 6})),
        with_state("without-a-step", lambda: stored({"optimizer": {}})),
        with_state("of-a-list", lambda: stored([9])),
        with_state("of-text", lambda: b"step: 9"),
        with_state("of-nothing", lambda: b""),
        with_state("hostile", hostile),
    ]
    return found


DAMAGES = damages()


def damage_and_go_on(
    run: Path, save: Save, name: str, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    damage(run)
    before = contents(run)
    with caplog.at_level(logging.WARNING):
        assert newest(run) == 6
    (warning,) = caplog.messages
    assert str(folder_of(run, 9)) in warning
    assert name in warning
    assert contents(run) == before
    save(run, 12)
    saving.prune(locate(run), keep_last=2, best_step=None)
    assert [is_whole(run, step) for step in (3, 6, 12)] == [True, True, True]  # 3 is the best
    assert newest(run) == 12
    save(run, 9)
    assert is_whole(run, 9)
    assert leftovers(run) == []


@pytest.fixture
def never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTEST_HOSTILE", str(tmp_path / "hostile"))
    yield
    assert not (tmp_path / "hostile").exists()


@pytest.mark.long
@pytest.mark.usefixtures("never_made")
@pytest.mark.parametrize(("what", "name", "damage"), DAMAGES, ids=[one[0] for one in DAMAGES])
def test_any_damage(
    run: Path,
    save: Save,
    caplog: pytest.LogCaptureFixture,
    record_property: Any,
    what: str,
    name: str,
    damage: Any,
) -> None:
    damage_and_go_on(run, save, name, caplog, damage)
    cuts, flips = (sum(one[0].startswith(kind) for one in DAMAGES) for kind in ("cut", "flip"))
    record_property(
        "figure",
        f"checkpoints: {cuts} truncations, {flips} flipped bits, "
        f"{len(DAMAGES) - cuts - flips} other damages passed over",
    )


ALWAYS = ("another-folder", "empty-folder", "state-hostile")
SOME = [
    *random.Random(1).sample(DAMAGES, 24),
    *(one for one in DAMAGES if one[0] in ALWAYS),
]


@pytest.mark.usefixtures("never_made")
@pytest.mark.parametrize(("what", "name", "damage"), SOME, ids=[one[0] for one in SOME])
def test_some_damage(
    run: Path, save: Save, caplog: pytest.LogCaptureFixture, what: str, name: str, damage: Any
) -> None:
    damage_and_go_on(run, save, name, caplog, damage)


# ---- the disk

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}


class Disk:
    """Fails at the n-th call of what creates, writes, flushes or renames."""

    def __init__(self, number: int, at: int, goes_on: bool) -> None:
        self.number, self.at, self.goes_on = number, at, goes_on
        self.calls: list[str] = []

    def count(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == self.at or (self.goes_on and len(self.calls) > self.at):
            raise OSError(self.number, os.strerror(self.number), "somewhere")

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "replace", "rename", "mkdir", "symlink"):
            patch.setattr(os, name, self.counted(name, getattr(os, name)))
        opening = self.opening(open)
        patch.setattr("builtins.open", opening)
        patch.setattr(io, "open", opening)
        import transformers.modeling_utils as theirs

        patch.setattr(theirs, "safe_save_file", self.counted("weights", theirs.safe_save_file))

    def counted(self, name: str, function: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            if name != "mkdir" or not os.path.isdir(args[0]):  # else it is allowed to fail
                self.count(f"{name} {args[0]}")
            return function(*args, **more)

        return wrapped

    def opening(self, function: Any) -> Any:
        disk = self

        class Written:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def __enter__(self) -> "Written":
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def write(self, content: Any) -> Any:
                disk.count(f"write {self.file.name}")
                return self.file.write(content)

        def opened(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if mode[0] not in "wax":
                return function(path, mode, *args, **more)
            self.count(f"open {path}")
            return Written(function(path, mode, *args, **more))

        return opened


def save_and_prune(run: Path, save: Save) -> None:
    """What the loop does where a checkpoint is the best so far."""
    save(run, 9)
    saving.point(locate(run), "best", 9)
    saving.prune(locate(run), keep_last=2, best_step=None)


@pytest.fixture
def earlier(run: Path) -> Path:
    """The same run before step 9."""
    shutil.rmtree(folder_of(run, 9))
    saving.point(locate(run), "last", 6)
    return run


def fail_at(run: Path, save: Save, disk: Disk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        with pytest.raises(CocosegError) as raised:
            save_and_prune(run, save)
    error = raised.value
    assert error.exit_code == 1
    assert os.strerror(disk.number) in str(error)
    assert "is kept" in str(error)
    assert "run the same command again" in str(error)
    assert str(run) in str(error)
    assert is_whole(run, 6)
    assert is_whole(run, 3) or (is_whole(run, 9) and layout.pointed_step(locate(run), "best") == 9)
    for name in ("best", "last"):
        step = layout.pointed_step(locate(run), name)
        assert step is not None
        assert is_whole(run, step)
    assert newest(run) == (9 if folder_of(run, 9).exists() else 6)
    if not disk.goes_on:
        assert leftovers(run) == []
    with resume.run_lock(locate(run), ALONE):
        save_and_prune(run, save)
    assert leftovers(run) == []
    assert [step for step in (3, 6, 9) if is_whole(run, step)] == [6, 9]
    assert {path.name for path in run.iterdir()} == {"checkpoints", "best", "last"}


def calls_of_a_save(run: Path, save: Save) -> list[str]:
    disk = Disk(0, 0, False)
    copied = run.with_name("counted")
    shutil.copytree(run, copied, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        save_and_prune(copied, save)
    kinds = {call.partition(" ")[0] for call in disk.calls}
    assert kinds == {"fsync", "replace", "mkdir", "symlink", "open", "write", "weights"}
    return disk.calls


@pytest.mark.long
@pytest.mark.parametrize("goes_on", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_fails_at_any_call_costs_no_checkpoint(
    earlier: Path, save: Save, tmp_path: Path, record_property: Any, error: str, goes_on: bool
) -> None:
    calls = calls_of_a_save(earlier, save)
    for at in range(1, len(calls) + 1):
        run = tmp_path / f"at-{at}"
        shutil.copytree(earlier, run, symlinks=True)
        fail_at(run, save, Disk(ERRORS[error], at, goes_on))
        shutil.rmtree(run)
    record_property(
        "figure",
        f"saving: {', '.join(ERRORS)}, once and for good, at each of {len(calls)} calls of the "
        "disk",
    )


@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_fails_at_some_calls_costs_no_checkpoint(
    earlier: Path, save: Save, tmp_path: Path, error: str
) -> None:
    dice = random.Random(error)
    calls = calls_of_a_save(earlier, save)
    for kind in ("fsync", "replace", "mkdir", "symlink", "open", "write", "weights"):
        at = dice.choice([i for i, call in enumerate(calls, 1) if call.startswith(kind)])
        run = tmp_path / f"at-{at}"
        shutil.copytree(earlier, run, symlinks=True)
        fail_at(run, save, Disk(ERRORS[error], at, dice.random() < 0.5))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` [bytes]: native code meets that as it meets a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt"])
def test_a_file_that_cannot_grow_is_told_in_plain_words(
    earlier: Path, save: Save, name: str, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real failure below safetensors and torch, not one raised in their place."""
    if name == "training_state.pt":
        monkeypatch.setattr(
            saving,
            "save_network",
            lambda folder, *_: (folder / "taxonomy.json").write_text("{}"),
        )
    size = (folder_of(earlier, 6) / name).stat().st_size
    before = contents(earlier)
    with largest_file(int(part * size)), pytest.raises(CocosegError) as raised:
        save(earlier, 9)
    assert "File too large" in str(raised.value)
    assert "step-00000006, is kept" in str(raised.value)
    assert contents(earlier) == before
    assert leftovers(earlier) == []
    assert layout.pointed_step(locate(earlier), "last") == 6


def test_a_fault_of_the_program_is_no_fault_of_the_disk(
    earlier: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("bias")

    monkeypatch.setattr(saving, "save_network", broken)
    with pytest.raises(KeyError):
        save(earlier, 9)
    assert leftovers(earlier) == []


def test_a_good_checkpoint_of_the_same_step_outlives_a_failed_replacement(
    run: Path, save: Save
) -> None:
    before = contents(run)
    calls = calls_of_a_save(run, save)
    last_ones = len(calls) - next(i for i, call in enumerate(calls) if call.startswith("fsync"))
    for at in range(len(calls) - last_ones, len(calls) + 1):
        for goes_on in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                Disk(errno.EIO, at, goes_on).watch(patch)
                with contextlib.suppress(CocosegError):
                    save(run, 9)
            if not goes_on:
                assert newest(run) == 9
            with resume.run_lock(locate(run), ALONE):
                assert newest(run) == 9
            assert leftovers(run) == []
    assert contents(run).keys() == before.keys()


def test_a_kill_between_the_two_names_of_a_replacement_is_made_good(run: Path) -> None:
    """As `_publish` leaves it, when killed at its worst moment."""
    before = contents(run)
    folder_of(run, 9).rename(run / "checkpoints" / "step-00000009.replaced")
    with resume.run_lock(locate(run), ALONE):
        assert contents(run) == before
        assert newest(run) == 9


# ---- scratch files, pointers, object stores


def test_the_lock_of_a_run_removes_what_killed_savers_left(run: Path) -> None:
    before = contents(run)
    half = run / "checkpoints" / ".tmp-4711-abcdefgh" / "step-00000012"
    shutil.copytree(folder_of(run, 9), half)
    (run / ".tmp-4711-0123456789abcdef").symlink_to("checkpoints/step-00000012")
    (run / ".tmp-4711-1").write_text("half")
    assert newest(run) == 9
    with resume.run_lock(locate(run), ALONE):
        assert leftovers(run) == []
        assert contents(run) == before
        assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "best", "last"}
    assert not (run / ".lock").exists()


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize(
    "target", ["checkpoints/step-00000077", "checkpoints/step-", "elsewhere", "/", "step-x"]
)
def test_links_that_lead_nowhere_mislead_nobody(
    run: Path, save: Save, name: str, target: str
) -> None:
    (run / name).unlink()
    (run / name).symlink_to(target)
    assert newest(run) == 9
    saving.prune(locate(run), keep_last=3, best_step=None)
    assert [is_whole(run, step) for step in (3, 6, 9)] == [True] * 3
    save(run, 12)
    assert newest(run) == 12


def test_times_of_files_mean_nothing(run: Path) -> None:
    for i, step in enumerate((9, 6, 3)):
        for path in (folder_of(run, step), *folder_of(run, step).iterdir()):
            os.utime(path, (i * 1e9, i * 1e9))
    assert newest(run) == 9
    saving.point(locate(run), "best", 9)
    saving.prune(locate(run), keep_last=1, best_step=None)
    assert list(map(newest, [run])) == [9]


@pytest.fixture
def remote(save: Save) -> Iterator[Location]:
    run = locate("memory://checkpoint-damage/run")
    run.remove()
    for step in (3, 6):
        save(run, step)
    yield run
    run.remove()


@pytest.mark.parametrize("after", range(7))
def test_a_checkpoint_half_published_on_an_object_store_is_none(
    remote: Location, save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    fs, _ = filesystem(remote.url)
    put, puts = type(fs).put_file, []

    def fails(self: Any, local: str, path: str, **more: Any) -> None:
        puts.append(path)
        if len(puts) > after:
            raise ConnectionResetError(104, "Connection reset by peer")
        put(self, local, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "put_file", fails)
        patch.setattr(retry, "FIRST_PAUSE", 0)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        if after < len(NAMES):
            message = r"/step-00000009/[\w.]+: cannot be written: Connection.*; tried 6 times; a co"
            with pytest.raises(saving.NotStored, match=message) as raised:
                save(remote, 9)
            kept = Path(raised.value.kept) / "step-00000009"
            assert sorted(path.name for path in kept.iterdir()) == list(NAMES)
            assert len(puts) == after + retry.ATTEMPTS
        else:
            save(remote, 9)
    assert newest(remote) == (6 if after < len(NAMES) else 9)
    save(remote, 12)
    saving.prune(remote, keep_last=2, best_step=None)
    assert layout.list_steps(remote) == ([6, 12] if after < len(NAMES) else [9, 12])


def test_copies_of_a_remote_checkpoint_live_as_long_as_the_context(
    remote: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with resume.agree_on_newest(remote, ALONE) as found:
        assert found is not None
        assert sorted(os.listdir(found.local)) == list(NAMES)
        assert found.folder == f"{remote}/checkpoints/step-00000006"
    (remote / "checkpoints/step-00000006/training_state.pt").publish_bytes(b"")
    with resume.agree_on_newest(remote, ALONE) as found:
        assert found is not None
        assert found.state.step == 3
        assert len(list(tmp_path.iterdir())) == 2  # a folder, and its lock
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_pointer_on_an_object_store_points_nowhere(remote: Location) -> None:
    (remote / "last").publish_bytes(b"\xff\x00\n")
    assert layout.pointed_step(remote, "last") is None
    assert newest(remote) == 6
