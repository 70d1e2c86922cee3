"""Where tasks run changes nothing; a worker that dies is told, not waited for."""

import importlib.util
import itertools
import math
import os

import pytest
from cocoseg.errors import CocosegError, ConfigError
from cocoseg.prepare.engines import run_tasks

# Standard functions: a worker process cannot import a test module.


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 30])
def test_every_task_has_one_result(workers, tasks):
    results = run_tasks(math.factorial, range(tasks), workers)
    assert sorted(results) == sorted(map(math.factorial, range(tasks)))


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_taken_as_they_are_needed(workers):
    taken = itertools.count()
    tasks = (next(taken) for _ in range(1000))
    results = run_tasks(abs, tasks, workers)
    assert next(results) in range(2 * workers)
    assert next(taken) <= 2 * workers
    if workers > 1:
        results.close()  # ends the workers


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_task_is_the_callers(workers):
    with pytest.raises(ValueError, match="invalid literal"):
        list(run_tasks(int, ["1", "x", "3"], workers))


def test_a_worker_that_dies_ends_the_work_with_what_to_do():
    with pytest.raises(CocosegError, match="run the same command again"):
        list(run_tasks(os._exit, [9, 9, 9], 2))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_a_usage_error():
    with pytest.raises(ConfigError, match=r"cocoseg\[ray\]"):
        list(run_tasks(abs, [1], 2, "ray"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_builds_the_same_bytes(coco_set, tmp_path):
    for image_id in range(1, 8):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, [[1, 1, 9, 1, 9, 9, 1, 9]])
    folders = {}
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        coco_set.prepare(folder, engine=engine, workers=2, samples_per_shard=2)
        folders[engine] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(folders["ray"]) > 4
    assert folders["local"] == folders["ray"]
