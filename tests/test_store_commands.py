"""Commands that write to an object store whose requests fail: they end as if none had."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.network import start_network
from cocoseg.model.config import ModelConfig
from cocoseg.storage import locate, retry
from cocoseg.taxonomy import coco_taxonomy
from object_store import Rule, Store

FAULTS = ("429", "500", "503", "reset", "slow")
WRITTEN = {
    "prepare": {
        "lease": r"/\.lock",
        "plan": r"/\.building/plan\.json",
        "shard": r"/shard-000000\.tar",
        "record": r"/\.building/shard-000001\.tar\.record",
        "index": r"/index\.npy",
        "classes": r"/index-classes\.npy",
        "settings": r"/config\.yaml",
        "report": r"/prepare-report\.html",
        "manifest": r"/manifest\.json",
    },
    "infer": {
        "lease": r"/\.lock",
        "ledger": r"/\.files\.json",
        "settings": r"/config\.yaml",
        "mask": r"/000000000102\.png",
        "picture": r"/overlay/000000000103\.png",
        "note": r"/\.progress/[0-9a-f]{16}\.json",
        "coco": r"/coco\.json",
        "list": r"/predictions\.jsonl",
    },
    "eval": {
        "lease": r"/\.lock",
        "ledger": r"/\.files\.json",
        "settings": r"/config\.yaml",
        "table": r"/classes\.csv",
        "report": r"/report\.html",
        "picture": r"/pictures/",
        "scores": r"/metrics\.json",
    },
    "export": {
        "weights": r"/model\.safetensors",
        "card": r"/README\.md",
        "config": r"/config\.json",
    },
}
REMOVED = "(POST|DELETE)"  # of many objects, and of one
CELLS = [(command, name) for command, names in WRITTEN.items() for name in names]
SOME = {("prepare", "shard"), ("prepare", "removal")}
SOME |= {("infer", "mask"), ("eval", "scores"), ("export", "weights")}
"""Those that the short tests try, with one fault."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    taxonomy = coco_taxonomy()
    network, preprocess = start_network(
        ModelConfig(name="segformer-tiny", input_size=32), taxonomy, 0
    )
    save_network(folder, network, preprocess, taxonomy)
    return folder


@pytest.fixture(scope="module")
def lines(golden: Any, checkpoint: Path) -> dict[str, tuple[object, ...]]:
    """The command lines, but for their output."""
    network = ("--checkpoint", checkpoint, "--set=infer.device=cpu", "--no-tta")
    return {
        "prepare": (
            *("prepare", "--annotations", golden.annotations("train")),
            *("--images", golden.images("train"), "--samples-per-shard", 4, "--engine", "inline"),
        ),
        "infer": (
            *("infer", *network, "--input", golden.images("train"), "--overlay", "--batch-size", 4),
            "--set=infer.coco_json=true",
        ),
        "eval": ("eval", *network, "--shards", golden.shards("val"), "--set=infer.pictures=2"),
        "export": ("export", "hf", "--checkpoint", checkpoint),
    }


def content(url: str) -> dict[str, bytes]:
    """Every file of an output, but what says where it is."""
    place = locate(url)
    return {
        name: re.sub(rb"(s3://shards|/tmp)\S*", b"", (place / name).read_bytes())
        for name in place.walk_files()
        if name not in ("config.yaml", "README.md")
    }


@pytest.fixture(scope="module")
def undisturbed(
    lines: dict[str, tuple[object, ...]],
) -> Callable[..., dict[str, bytes]]:
    """What a command leaves where nothing fails."""
    found: dict[str, dict[str, bytes]] = {}

    def make(command: str, run: Callable[..., Any]) -> dict[str, bytes]:
        if command not in found:
            output = f"s3://shards/commands/{command}/undisturbed/out"
            ran = run(*lines[command], "--output", output)
            assert ran.code == 0, ran.err
            found[command] = content(output)
            assert found[command]
        return found[command]

    return make


@pytest.mark.parametrize(
    ("command", "name", "fault"),
    [
        pytest.param(
            *cell, fault, marks=() if fault == "503" and cell in SOME else pytest.mark.long
        )
        for cell in [*CELLS, *((command, "removal") for command in ("prepare", "infer", "eval"))]
        for fault in FAULTS
    ],
)
def test_a_fault_that_passes_changes_nothing(
    store: Store,
    run_cocoseg: Callable[..., Any],
    lines: dict[str, tuple[object, ...]],
    undisturbed: Callable[..., dict[str, bytes]],
    command: str,
    name: str,
    fault: str,
) -> None:
    expected = undisturbed(command, run_cocoseg)
    output = f"s3://shards/commands/{command}/{name}-{fault}/out"
    method = REMOVED if name == "removal" else "PUT"
    rule = Rule(fault, WRITTEN[command].get(name, ""), times=3, method=method)
    store.proxy.rules[:] = [rule]
    ran = run_cocoseg(*lines[command], "--output", output)
    assert ran.code == 0, ran.err
    # What is removed although its answer came too late is not removed again.
    assert rule.struck == 3 or ((name, fault) == ("removal", "slow") and rule.struck)
    store.proxy.rules.clear()
    found = content(output)
    if (name, fault) == ("note", "slow"):  # what the store was late with may be written at the end
        found = {file: one for file, one in found.items() if not file.startswith(".progress/")}
    assert found == expected


def test_reads_of_a_build_that_goes_on_are_retried(
    store: Store,
    run_cocoseg: Callable[..., Any],
    lines: dict[str, tuple[object, ...]],
    undisturbed: Callable[..., dict[str, bytes]],
) -> None:
    expected = undisturbed("prepare", run_cocoseg)
    output = "s3://shards/commands/prepare/goes-on/out"
    store.proxy.rules[:] = [Rule("503", r"000001\.tar\.record", times=None, method="PUT")]
    assert run_cocoseg(*lines["prepare"], "--output", output).code == 1
    rule = Rule("reset in the body", r"goes-on/out/shard-000000\.tar", times=3, method="GET")
    store.proxy.rules[:] = [rule]
    ran = run_cocoseg(*lines["prepare"], "--output", output)
    assert ran.code == 0, ran.err
    assert rule.struck == 3
    store.proxy.rules.clear()
    assert content(output) == expected


def test_weights_are_fetched_without_the_training_state_and_no_copy_stays(
    store: Store,
    run_cocoseg: Callable[..., Any],
    golden: Any,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    url = store.upload(checkpoint, "fetched")
    store.put("fetched/training_state.pt", b"large")
    store.proxy.clear()
    ran = run_cocoseg(
        *("infer", "--checkpoint", url, "--set=infer.device=cpu", "--no-tta"),
        *("--input", golden.images("val"), "--output", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    assert store.proxy.count("model.safetensors")
    assert not store.proxy.count("training_state.pt")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [pytest.param(*cell, marks=() if cell in SOME else pytest.mark.long) for cell in CELLS],
)
def test_a_store_that_fails_for_good_ends_it_in_one_message_and_the_same_command_completes_it(
    store: Store,
    run_cocoseg: Callable[..., Any],
    lines: dict[str, tuple[object, ...]],
    undisturbed: Callable[..., dict[str, bytes]],
    command: str,
    name: str,
) -> None:
    expected = undisturbed(command, run_cocoseg)
    output = f"s3://shards/commands/{command}/{name}-for-good/out"
    store.proxy.rules[:] = [Rule("503", WRITTEN[command][name], times=None, method="PUT")]
    ran = run_cocoseg(*lines[command], "--output", output)
    assert ran.code == 1
    attempts = retry.ATTEMPTS
    assert re.search(rf"cannot be written: HTTP 503: .*; tried {attempts} times", ran.err), ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("cannot be written") == 1
    store.proxy.rules.clear()
    ran = run_cocoseg(*lines[command], "--output", output)
    assert ran.code == 0, ran.err
    assert content(output) == expected
