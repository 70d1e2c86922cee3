"""The command line of cocoseg, of which one rank runs out of memory.

    RANK_WITHOUT=1 AT_CALL=5 no_memory.py train --shards …

The micro-batch that the rank takes as its AT_CALL-th fails in its backward pass; with AT_CALL=0 its
part of the first validation does.
"""

import os
import sys


def main() -> None:
    import torch
    from cocoseg import cli
    from cocoseg.train import validation
    from cocoseg.train.step import TrainingStep

    backward, calls = TrainingStep._backward, 0
    at_call = int(os.environ["AT_CALL"])
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def failing(self, *args, **more):
        nonlocal calls
        calls += 1
        part = backward(self, *args, **more)
        if calls == at_call:
            raise error
        return part

    def failing_validation(*_, **__):
        raise error

    if os.environ["RANK"] in os.environ["RANK_WITHOUT"].split(","):
        TrainingStep._backward = failing
        if at_call == 0:
            validation.totals_of = failing_validation
    sys.argv[0] = "cocoseg"
    cli.main()


if __name__ == "__main__":
    main()
