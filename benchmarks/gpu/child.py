"""Runs cases, in a process of its own: requests on stdin, answers on stdout, a line of JSON each.

    {"function": "parity:masks", "device": "cuda", "tiny": false, "scratch": DIR}
    {"row": {…}} … {"done": true}        or        {"failure": TEXT, "traceback": TEXT}

Its argument is the type of device. The first answer says why there is none, or where cocoseg is and
which packages cannot be imported. After a failure from which a GPU does not recover, the process
ends, and the last answer says so: ``"ends": true``. ``turn FUNCTION`` is for a case that waits; see
`Bench.turn`.
"""

import dataclasses
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # measure.py

_MODULES = (
    "cocoseg.cli",
    "cocoseg.prepare.build",
    "cocoseg.train.run",
    "cocoseg.infer.predict.run",
)


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")

    gc.disable()
    answer(**_greeting(sys.argv[1]))
    gc.freeze()  # what is imported stays: to search it takes each collection half a second
    gc.enable()
    while line := sys.stdin.readline():
        if line.startswith("turn "):
            continue  # of a case that did not wait
        request = json.loads(line)
        last: dict[str, Any] = {"done": True}
        try:
            for row in _rows(request):
                answer(row=dataclasses.asdict(row))
        except Exception as error:
            last = {"failure": _brief(error), "traceback": traceback.format_exc()}
        recovered = _recovered(request["device"])
        answer(**last, ends=not recovered)
        if not recovered:
            return


def _greeting(device: str) -> dict[str, Any]:
    """Import everything, and say what cannot be."""
    import packages

    broken: dict[str, str] = {}
    if device == "cuda" and (fault := _no_gpu()):
        return {"no_gpu": fault, "cocoseg": None, "broken": broken}
    for name in (*packages.NEEDED.values(), *_MODULES):
        try:
            importlib.import_module(name)
        except Exception as error:
            broken[name] = _brief(error)
    file = getattr(sys.modules.get("cocoseg"), "__file__", None)
    return {"no_gpu": "", "cocoseg": file and os.path.realpath(file), "broken": broken}


def _no_gpu() -> str:
    """Return why torch sees no GPU; empty if it sees one."""
    import torch

    if torch.cuda.is_available():
        return ""
    what = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"no GPU: {what} is a build without CUDA; PYTHON=… names another Python"
    return f"no GPU: {what} (CUDA {torch.version.cuda}) finds none; see what 'nvidia-smi' says"


def _rows(request: dict[str, Any]) -> Any:
    from bench import Bench

    module, _, function = request["function"].partition(":")
    bench = Bench.of(
        request["device"], request["tiny"], Path(request["scratch"]), request["function"]
    )
    return getattr(importlib.import_module(module), function)(bench)


def _recovered(device: str) -> bool:
    """Free what a case held, and undo its settings; return whether the device still answers."""
    import torch

    gc.collect()
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0)
    except RuntimeError:
        return False
    return True


def _brief(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


if __name__ == "__main__":
    main()
