"""A process learns from its launcher which one it is; what does not fit is refused."""

from collections.abc import Callable

import pytest
from cocoseg.errors import ConfigError
from cocoseg.processes import Launch

Environment = Callable[..., None]

ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 29500}
BATCH = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 8, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}
"""What Slurm sets in a batch script, before any srun."""


def srun(task: int, local: int, tasks: int = 8) -> dict[str, object]:
    """Return what srun sets for one of its tasks."""
    steps = {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": tasks}
    return {**BATCH, **steps, "SLURM_PROCID": task, "SLURM_LOCALID": local}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": 1},
        {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1},
        {"WORLD_SIZE": "", "RANK": ""},
        BATCH,  # sbatch, and salloc with a shell on the login node
        {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 8},
        srun(0, 0, 1),  # srun --pty bash; salloc with use_interactive_step
        {**srun(3, 1), "WORLD_SIZE": 1},  # eight separate runs, on purpose
    ],
)
def test_a_single_process_is_alone(environment: Environment, variables: dict) -> None:
    environment(**variables)
    launch = Launch.from_environment()
    assert launch == Launch(0, 1, 0, 1)
    assert launch.leads
    launch.check()


@pytest.mark.parametrize("also", [{}, BATCH, srun(1, 0, 2)])  # torchrun itself, by srun per node
def test_torchrun_has_the_last_word(environment: Environment, also: dict) -> None:
    ranks = {"RANK": 5, "LOCAL_RANK": 1, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}
    environment(**also, **ranks, **ADDRESS)
    launch = Launch.from_environment()
    assert launch == Launch(5, 8, 1, 4)
    assert not launch.leads
    launch.check()


def test_under_srun_slurm_says_what_is_not_set(environment: Environment) -> None:
    environment(**srun(5, 1), WORLD_SIZE=8, **ADDRESS)
    assert Launch.from_environment() == Launch(5, 8, 1, None)
    environment(**srun(5, 1), WORLD_SIZE=8, RANK=5, **ADDRESS)
    assert Launch.from_environment() == Launch(5, 8, 1, None)
    environment(**srun(5, 1), WORLD_SIZE=8, LOCAL_RANK=3, **ADDRESS)
    assert Launch.from_environment().local_rank == 3
    environment(SLURM_LOCALID=1, WORLD_SIZE=8, RANK=5, **ADDRESS)
    assert Launch.from_environment() == Launch(5, 8, 1, None)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": 1},
        {**BATCH, "RANK": 1},  # started in the background of a batch script: all are local 0 there
        {**srun(0, 0, 1), "RANK": 1},
        {**srun(1, 1, 4), "RANK": 1},  # a step of other processes
    ],
)
def test_slurm_is_not_believed_about_processes_that_it_did_not_start(
    environment: Environment, variables: dict
) -> None:
    environment(**variables, WORLD_SIZE=2, **ADDRESS)
    assert Launch.from_environment() == Launch(1, 2, None, None)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"WORLD_SIZE": 2}, ("RANK", "MASTER_ADDR", "MASTER_PORT")),
        ({"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "host"}, ("MASTER_PORT",)),
        ({"WORLD_SIZE": 2, **BATCH, **ADDRESS}, ("RANK",)),
        ({"WORLD_SIZE": 8, **srun(3, 1)}, ("MASTER_ADDR", "MASTER_PORT")),
    ],
)
def test_what_the_processes_need_to_meet_is_named(
    environment: Environment, variables: dict, missing: tuple[str, ...]
) -> None:
    environment(**variables)
    launch = Launch.from_environment()
    assert launch.missing == missing
    launch.check()  # enough for --dry-run


@pytest.mark.parametrize("task", [0, 3])
@pytest.mark.parametrize("tasks", [8, None])
def test_tasks_of_srun_that_would_all_run_alone_are_refused(
    environment: Environment, task: int, tasks: int | None
) -> None:
    variables = srun(task, task % 2)
    if tasks is None:
        del variables["SLURM_STEP_NUM_TASKS"]
    environment(**variables)
    launch = Launch.from_environment()
    if tasks is None and task == 0:
        launch.check()  # nothing tells it from a batch script
        return
    assert (launch.rank, launch.local_rank, launch.leads) == (task, task % 2, task == 0)
    with pytest.raises(
        ConfigError, match=rf"srun started {tasks or task + 1} tasks, but WORLD_SIZ"
    ):
        launch.check()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": 4, "WORLD_SIZE": 4}, "RANK=4 and WORLD_SIZE=4 do not fit"),
        ({"RANK": -1, "WORLD_SIZE": 4}, "RANK=-1 and WORLD_SIZE=4 do not fit"),
        ({"RANK": 1}, "RANK=1 and WORLD_SIZE=1 do not fit"),
        ({"WORLD_SIZE": 0}, "RANK=0 and WORLD_SIZE=0 do not fit"),
        ({"WORLD_SIZE": "two"}, "variable WORLD_SIZE='two' is not an integer"),
        ({"WORLD_SIZE": 4, **srun(3, 1)}, "srun started 8 tasks, but WORLD_SIZE is 4: set it to 8"),
        ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": "x"}, "MASTER_PORT='x' is not 0 … 65535"),
        ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": 65536}, "MASTER_PORT='65536' is not 0"),
        ({"LOCAL_RANK": "$SLURM_LOCALID"}, r"LOCAL_RANK='\$SLURM_LOCALID' is not an integer"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused_but_can_be_read(
    environment: Environment, variables: dict, told: str
) -> None:
    environment(**variables)
    launch = Launch.from_environment()
    assert launch.leads  # each process prints the error: nobody knows which one is the first
    with pytest.raises(ConfigError, match=told):
        launch.check()
