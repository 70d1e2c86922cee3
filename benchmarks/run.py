"""Ratios against the plain way, measured in one run (A B A B …, median): ``make bench``.

    python benchmarks/run.py [prepare] [scale] [stream] [loss] [loop] [model] [infer]

``prepare``: speed and memory of `cocoseg prepare` on up to 4,000 images; ``scale``: on up to
118,287; ``stream``: reading shards; ``loss``: training's; ``loop``: training beside its bare steps;
``model``: SegFormer against transformers' own; ``infer``: masks. All of them, if none is named.
What is measured is drawn by `cocoseg demo`, or real COCO where COCOSEG_DATA names a folder with
``coco/annotations`` and ``coco/train2017``. COCOSEG_PEERS may name a Python that has peers
installed (see prepare/peers.py and stream/speed.py).
"""

import sys
import tempfile
from pathlib import Path

import loop
import loss
from measure import machine, note, print_rows
from prepare.data import Pictures
from stream import speed as stream

import infer
import model
from prepare import scale, speed

PARTS = ("prepare", "scale", "stream", "loss", "loop", "model", "infer")


def main(parts: list[str]) -> None:
    """Print the machine and the tables."""
    if set(parts) - set(PARTS):
        raise SystemExit(f"parts: {', '.join(PARTS)}")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="cocoseg-bench-") as folder:
        scratch = Path(folder)
        if set(parts) & {"prepare", "scale", "stream", "loop"}:
            pictures = Pictures.load(scratch)
            note(f"{len(pictures.images)} pictures: {pictures.name}; the bars are for real COCO")
        if "prepare" in parts:
            print_rows(f"prepare, {pictures.name}", speed.rows(pictures, scratch))
        if "scale" in parts:
            print_rows(f"prepare at scale, {pictures.name}", scale.rows(pictures, scratch))
        if "stream" in parts:
            print_rows(f"stream, {pictures.name}", stream.rows(pictures, scratch))
        if "loop" in parts:
            print_rows(f"loop, {pictures.name}", loop.rows(pictures, scratch))
    if "loss" in parts:
        print_rows("loss", loss.rows())
    if "model" in parts:
        print_rows("SegFormer, float32", model.rows())
    if "infer" in parts:
        print_rows("infer", infer.rows())


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
