"""Run the peers that the Python named by COCOSEG_PEERS has installed; see peer.py.

In a virtual environment of its own:

    pip install torch==2.13.0 pycocotools pillow
    pip install --no-deps datumaro==1.13.12 ultralytics==8.4.190 supervision torchvision==0.28.0

and what they then ask for when imported. panopticapi is on no index, and refuses instances that
overlap, as COCO's do.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

PEERS = ("datumaro", "ultralytics", "supervision", "torchvision")
_SCRIPT = Path(__file__).with_name("peer.py")


def installed() -> Iterator[str]:
    """Yield the peers that can be run."""
    python = os.environ.get("COCOSEG_PEERS")
    for name in PEERS if python else ():
        probe = f"import importlib.metadata as m; print(m.version({name!r}))"
        if subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0:
            yield name


def cpu(name: str, root: Path, output: Path) -> float:
    """Return the CPU seconds of one peer, its imports left out."""
    command = [os.environ["COCOSEG_PEERS"], str(_SCRIPT), name, str(root), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["cpu"])
