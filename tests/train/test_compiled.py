"""train.compile among several processes: one graph, compiled once, and the same steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

SCRIPT = Path(__file__).with_name("compiled_steps.py")
RECOMPUTED = {"activation_checkpointing": True}
HALF = {"use_amp": True, "amp_dtype": "bfloat16"}
long = pytest.mark.long


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        pytest.param("eager", RECOMPUTED, marks=long),
        pytest.param("eager", {"recompute_mlp": False}, marks=long),
        pytest.param("aot_eager", HALF | RECOMPUTED, marks=long),
        pytest.param("inductor", RECOMPUTED, marks=long),
        pytest.param("inductor", HALF, marks=long),
    ],
)
def test_two_processes_compile_one_graph_and_take_the_same_steps(
    warm: Warm, backend: str, settings: dict[str, Any]
) -> None:
    ran = warm.start(
        *(2, SCRIPT, backend, json.dumps(settings)),
        TORCHINDUCTOR_COMPILE_THREADS="1",
    )
    out, err = ran.communicate(timeout=1800)
    assert ran.returncode == 0, err[-3000:]
    (line,) = (line for line in out.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert found["breaks"] == []
    assert found["graphs"] == 1  # and none for another micro-batch or step
    tolerance = 5e-3 if "amp_dtype" in settings else 1e-5
    for ours, plain in zip(found["compiled"], found["plain"], strict=True):
        assert ours == pytest.approx(plain, rel=tolerance)
