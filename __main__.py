"""``python -m cocoseg`` and ``torchrun … -m cocoseg``: the same command line as ``cocoseg``."""

from .cli import main

if __name__ == "__main__":
    main()
