"""One rank of `cocoseg doctor` among two, as the command line runs it, without what takes long.

Arguments: ``healthy``, or ``hangs``: then the probe of rank 1 is left behind at once.
"""

import json
import sys

from cocoseg.doctor import libraries, machine, ranks
from cocoseg.doctor.checks import examine
from cocoseg.model.config import ModelConfig
from cocoseg.processes import Launch
from cocoseg.train.config import AugmentConfig, TrainConfig


def main() -> None:
    for module, name in ((libraries, "imports"), (machine, "hub")):
        setattr(module, name, lambda *_: ())
    if sys.argv[1] == "hangs" and Launch.from_environment().rank == 1:
        ranks._LIMIT = 0.0
    diagnosis = examine(TrainConfig(workers=1), ModelConfig(name="segformer-tiny"), AugmentConfig())
    found = None if diagnosis is None else diagnosis.to_dict()
    sys.stdout.write(json.dumps([Launch.from_environment().rank, found]) + "\n")  # in one piece


if __name__ == "__main__":
    main()
