"""Count cases for the tests, in a process of its own: a name and settings in, what was seen out.

Started as ``child.py GUARD``. Each line of the input is JSON, ``[name, settings]``; so is each line
of the output: a `counter.Counted`, or the traceback of a case that failed.
"""

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import device


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    device.start(Path(sys.argv[1]))
    import torch
    from cases import count

    torch.set_num_threads(1)

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
    os._exit(0)  # taking all modules apart costs seconds


def _told(error: Exception) -> str:
    """Return the traceback without the frames of torch, of which there are many."""
    told = traceback.TracebackException.from_exception(error)
    frames = (frame for frame in told.stack if "/site-packages/torch/" not in frame.filename)
    told.stack = traceback.StackSummary.from_list(list(frames))
    return "".join(told.format())


if __name__ == "__main__":
    main()
