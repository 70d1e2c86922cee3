"""Run cases for the tests, in a process of its own: ``child.py GUARD``.

Reads ``[name, settings]`` from stdin, one JSON line per case, and writes one JSON line for each to
stdout: a `counter.Counted`, or the traceback of a case that failed.
"""

import dataclasses
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import device


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    device.start(Path(sys.argv[1]))
    import torch
    from cases import count

    torch.set_num_threads(1)
    gc.freeze()  # garbage collection of modules took a tenth of the time

    def answer(name: str, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            counted = count(name, settings)
        except Exception as error:
            return {"failure": _told(error)}
        launches = [[op, where, many] for (op, where), many in counted.launches.items()]
        return {
            "to_host": [dataclasses.asdict(copy) for copy in counted.to_host],
            "to_device": [dataclasses.asdict(copy) for copy in counted.to_device],
            "launches": launches,
        }

    for line in sys.stdin:
        name, settings = json.loads(line)
        answers.write(json.dumps(answer(name, settings)) + "\n")
    os._exit(0)  # the interpreter's own exit takes seconds


def _told(error: Exception) -> str:
    """Return the traceback without frames inside torch."""
    told = traceback.TracebackException.from_exception(error)
    frames = (frame for frame in told.stack if "/site-packages/torch/" not in frame.filename)
    told.stack = traceback.StackSummary.from_list(list(frames))
    return "".join(told.format())


if __name__ == "__main__":
    main()
