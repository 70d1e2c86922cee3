"""Print the kernels and copies of a case: ``count.py training_step model=segformer-b5 size=640``.

Values of settings are JSON, or else text. ``--by op`` sums over source lines, ``--by line`` over
operators. Kernels of the backward pass are listed under the line of their forward pass.
"""

import argparse
import importlib.util
import json
import tempfile
from collections import Counter as Counts
from pathlib import Path
from typing import Any

import device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--by", choices=("op", "line", "both"), default="both")
    parser.add_argument("--top", type=int, default=30)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        device.start(device.compile_guard(Path(folder)))
    import torch
    from cases import count
    from counter import Counter

    transformers = importlib.util.find_spec("transformers")
    assert transformers is not None
    assert transformers.origin is not None
    settings = {
        key: _value(text) for key, _, text in (one.partition("=") for one in asked.settings)
    }
    counter = Counter([Path(transformers.origin).parent], backward=True)
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        counted = count(asked.case, settings, counter)
    for what, copies in (("device → host", counted.to_host), ("host → device", counted.to_device)):
        print(f"{len(copies)} copies {what}, {sum(copy.blocking for copy in copies)} blocking")
        for copy in copies:
            print(f"  {copy.op} {copy.shape} {'blocking ' * copy.blocking}{copy.where}")
    print(f"{sum(counted.launches.values())} kernels")
    launches: Counts[str] = Counts()
    for (op, line), many in counted.launches.items():
        launches[{"op": op, "line": line, "both": f"{op:<45} {line}"}[asked.by]] += many
    for what, many in launches.most_common(asked.top):
        print(f"{many:6}  {what}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
