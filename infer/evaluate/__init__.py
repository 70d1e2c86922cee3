"""``cocoseg eval``: scores of a checkpoint, or of masks, on shards.

run.py        from shards to scores       images.py      scores and pictures of single images
scored.py     the network that is scored  predicted.py   masks that are scored instead
tally.py      what is counted             result.py      scores, and the files of them
boundary.py   boundary IoU                page.py        the report
label_errors.py  label quality, suspicious regions
calibration.py  expected calibration error
"""
