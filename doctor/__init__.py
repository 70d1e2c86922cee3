"""``cocoseg doctor``: what does not work here, and what to do.

checks.py     all checks, in order          inspection.py  shards, loader, losses
libraries.py  versions and their extras     trial.py       training steps on one batch, scores
machine.py    cores, memory, limits         ranks.py       every rank and its GPU
probe.py      a check in its own process    finding.py     what a check says
"""
