"""Load a COCO JSON in a process of its own: python load.py plain|ours ANNOTATIONS.

Prints CPU seconds, and the most memory held [bytes], as JSON.
"""

import json
import sys
import time
from pathlib import Path

HIGH_WATER = "VmHWM:"

if __name__ == "__main__":
    way, path = sys.argv[1:]
    if way == "plain":
        from pycocotools.coco import COCO

        load = COCO
    else:
        from cocoseg.prepare.annotations import read_annotations

        load = read_annotations
    start = time.process_time()
    kept = load(path)
    cpu = time.process_time() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(1024 * int(line.split()[1]) for line in status if line.startswith(HIGH_WATER))
    print("\n" + json.dumps({"cpu": cpu, "peak": peak}))
