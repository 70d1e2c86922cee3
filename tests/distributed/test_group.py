"""Processes meet, agree on devices, and leave notes for each other whatever a collective does."""

import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from cocoseg.distributed import group as group_module
from cocoseg.distributed import rendezvous as rendezvous_module
from cocoseg.distributed.devices import UsedDevice
from cocoseg.distributed.group import Group, process_group
from cocoseg.errors import CocosegError, ConfigError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.evaluate.run import evaluate
from cocoseg.infer.predict.run import predict
from cocoseg.model.config import ModelConfig
from torch.distributed import HashStore

Environment = Callable[..., None]

TWO = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}


# ---- notes


@pytest.fixture(scope="module")
def noted(started: Any) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    ranks = started("notes")
    return [ranks.found(rank) for rank in (0, 1)]


def test_a_claim_is_granted_once(noted: list[dict[str, Any]]) -> None:
    claims = list(zip(*(found["claims"] for found in noted), strict=True))
    assert len(claims) == 50
    assert all(sorted(pair) == [False, True] for pair in claims)
    assert not any(noted[0]["again"] + noted[1]["again"])


def test_notes_pass_while_a_rank_hangs_in_a_collective(noted: list[dict[str, Any]]) -> None:
    first, second = noted
    assert (first["unpublished"], first["too late"]) == (None, False)
    assert (first["hangs"], first["rescue"]) == (True, True)
    assert (first["published"], first["own"]) == (True, "words")
    assert (second["late"], second["text"]) == (True, "at last\nä")


def test_without_the_store_nothing_is_claimed_and_nothing_raised(started: Any) -> None:
    ranks = started("gone")
    assert ranks.found(0) == {}  # and has ended
    assert ranks.found(1, say="go\n") == [False, False, None, False]


def test_a_rank_whose_peer_was_killed_ends_in_one_line(started: Any) -> None:
    ranks = started("killed")
    ranks.ranks[1].communicate("die\n")
    assert ranks.ranks[1].returncode == -signal.SIGKILL
    text, shared, without_traceback = ranks.found(0)
    assert text.startswith("rank 0: another rank has ended or cannot be reached, and this one ends")
    assert (text.count("\n"), shared, without_traceback) == (0, False, True)


def test_a_single_process_hears_itself() -> None:
    group = Group(0, 1, torch.device("cpu"))
    assert group.claim("rescue")
    assert group.claim("rescue")
    assert (group.published("note"), group.wait_for("note", 1e9)) == (None, False)
    assert group.publish("note", "text")
    assert (group.published("note"), group.wait_for("note", 1e9)) == ("text", True)
    assert Group(0, 1, torch.device("cpu")).published("note") is None  # notes are of one group


# ---- buffers


def test_buffers_of_rank_0_reach_the_others_by_gloo_in_one_message_a_type(started: Any) -> None:
    ranks = started("buffers")
    first, second = (ranks.found(rank) for rank in (0, 1))
    assert first == second
    assert second["values"][1][0] == float(torch.tensor(1 / 3))
    assert second["values"][6] == [2**40 + 1]
    assert second["sent"] == ["torch.bool", "torch.float32", "torch.int64"]


# ---- the start


def test_a_rank_without_a_device_ends_all_and_one_tells(started: Any) -> None:
    ranks = started("no_gpu")
    expected = ["ConfigError", "rank 1: device 'cuda:1': gone", True]
    assert [ranks.found(rank) for rank in (0, 1)] == [expected, expected]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Let rank 1 of 2 start without the other; the calls to `torch.distributed`, by name."""
    calls: dict[str, dict[str, Any]] = {}

    def record(name: str) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            calls[name] = {"arguments": arguments, **named}

        return call

    store = HashStore()
    store.set("device/0", UsedDevice("a", "cuda", "GPU-0").to_json())
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(group_module.dist, name, record(name))
    monkeypatch.setattr(torch.cuda, "set_device", record("set_device"))
    monkeypatch.setattr(group_module, "join", lambda patience: (store, 1, 2))
    monkeypatch.setattr(group_module, "own_device", lambda *_: torch.device("cuda:1"))
    own = UsedDevice("a", "cuda", "GPU-1")
    monkeypatch.setattr(UsedDevice, "of", lambda *_: own)
    return calls


def test_a_hung_gpu_is_waited_for_10_minutes_and_a_slow_rank_2_hours(
    environment: Environment, connected: dict[str, dict[str, Any]]
) -> None:
    environment(**TWO)
    with process_group("auto") as group:
        assert (group.rank, group.world_size, group.device) == (1, 2, torch.device("cuda:1"))
    started = connected["init_process_group"]
    assert started["arguments"] == ("nccl",)
    assert started["timeout"] == timedelta(minutes=10)
    assert started["device_id"] == torch.device("cuda:1")
    control = {"arguments": (), "backend": "gloo", "timeout": timedelta(hours=2)}
    assert connected["new_group"] == control
    assert connected["set_device"]["arguments"] == (torch.device("cuda:1"),)
    assert "destroy_process_group" in connected


def test_without_gradients_gpus_are_not_connected(
    environment: Environment, connected: dict[str, dict[str, Any]]
) -> None:
    environment(**TWO)
    with process_group("auto", gradients=False) as group:
        assert group.device == torch.device("cuda:1")
    started = connected["init_process_group"]
    assert (started["arguments"], started["device_id"]) == (("gloo",), None)
    assert started["timeout"] == timedelta(hours=2)


def test_two_ranks_on_one_gpu_are_refused_before_nccl_is_asked(
    environment: Environment,
    connected: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(**TWO)
    same = UsedDevice("a", "cuda", "GPU-0")
    monkeypatch.setattr(UsedDevice, "of", lambda *_: same)
    with pytest.raises(ConfigError, match="ranks 0-1 use the same GPU of a") as raised:
        process_group("auto").__enter__()
    assert raised.value.shared
    assert "init_process_group" not in connected


def test_what_nccl_says_is_told_with_what_to_do(
    environment: Environment,
    connected: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("NCCL error\nncclSystemError: no route to host")

    environment(**TWO)
    monkeypatch.setattr(group_module.dist, "init_process_group", fails)
    with pytest.raises(CocosegError) as raised:
        process_group("auto").__enter__()
    assert "by NCCL or gloo: NCCL error\nncclSystemError: no route to host" in str(raised.value)
    assert "cocoseg doctor" in str(raised.value)


@pytest.mark.parametrize("command", [predict, evaluate])
def test_inference_does_without_nccl(
    environment: Environment,
    connected: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., object],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host")

    environment(**TWO)
    monkeypatch.setattr(group_module.dist, "init_process_group", fails)
    with pytest.raises(CocosegError, match="cannot be connected by gloo: no route to host"):
        command(InferConfig(checkpoint="RUN", device="cuda"), ModelConfig())


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": 2}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT are not"),
        ({"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "a"}, "but MASTER_PORT is not set"),
        ({"SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 2}, "srun started 2 tasks"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not an integer"),
    ],
)
def test_a_start_without_what_is_needed_to_meet_is_refused(
    environment: Environment, variables: dict, told: str
) -> None:
    environment(**variables)
    with pytest.raises(ConfigError, match=told):
        process_group("cpu").__enter__()


def test_an_address_that_does_not_answer_is_named(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("connection refused")

    environment(**TWO, MASTER_ADDR="127.0.0.1", MASTER_PORT=29500)
    monkeypatch.setattr(rendezvous_module, "rendezvous", refuses)
    told = r"rank 1: no connection .* at 127\.0\.0\.1:29500: connection refused"
    with pytest.raises(CocosegError, match=told):
        process_group("cpu").__enter__()
