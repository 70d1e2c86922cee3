"""One rank of `cocoseg doctor --json` among two, without the checks that take long.

Arguments: ``healthy``, or ``hangs``: then the probe of rank 1 is left behind at once.
"""

import sys

from cocoseg import cli
from cocoseg.doctor import libraries, machine, ranks
from cocoseg.processes import Launch


def main() -> None:
    for module, name in ((libraries, "imports"), (machine, "hub")):
        setattr(module, name, lambda *_: ())
    if sys.argv[1] == "hangs" and not Launch.from_environment().leads:
        ranks._LIMIT = 0.0
    sys.argv = ["cocoseg", "doctor", "--json", "--set", "train.workers=1"]
    cli.main()


if __name__ == "__main__":
    main()
