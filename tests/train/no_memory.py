"""The command line of cocoseg, of which one rank runs out of memory.

    RANK_WITHOUT=1 AT_CALL=5 no_memory.py train --shards …

The micro-batch that the rank takes as its AT_CALL-th fails in its backward pass.
"""

import os
import sys


def main() -> None:
    import torch
    from cocoseg import cli
    from cocoseg.train.step import TrainingStep

    backward, calls = TrainingStep._backward, 0

    def failing(self, *args, **more):
        nonlocal calls
        calls += 1
        part = backward(self, *args, **more)
        if calls == int(os.environ["AT_CALL"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return part

    if os.environ["RANK"] in os.environ["RANK_WITHOUT"].split(","):
        TrainingStep._backward = failing
    sys.argv[0] = "cocoseg"
    cli.main()


if __name__ == "__main__":
    main()
