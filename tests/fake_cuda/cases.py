"""All cases by name: functions that run part of cocoseg under a `Counter`."""

from collections.abc import Callable
from typing import Any

import cases_evaluation
import cases_harness
import cases_inference
import cases_training
from counter import Counted, Counter

CASES: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        cases_training.training_step,
        cases_training.plain_step,
        cases_training.loss,
        cases_training.memory_estimate,
        cases_inference.inference,
        cases_inference.outside_network,
        cases_evaluation.scoring,
        cases_harness.planted,
        cases_harness.crash,
    )
}


def count(name: str, settings: dict[str, Any], counter: Counter | None = None) -> Counted:
    """Run a case and return its counts."""
    counter = counter or Counter()
    CASES[name](counter, **settings)
    return counter.counted
