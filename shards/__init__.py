"""The contract between the stages: shards, their manifest, and the order in which they are read.

manifest.py  manifest.json and the index      reader.py   samples, by the index
tarball.py   members of a tar, as they lie    files.py    local files, or ranges of objects
members.py   which members are a sample       cache.py    shards fetched from an object store
writer.py    a shard, written                 order.py    the order of samples and batches
png.py       masks as PNG                     repeats.py  rare classes, shown more often
decode.py    from bytes to pixels             dataset.py  a data set for training loops
contents.py  what is checked of a member      stream.py   the same as a webdataset pipeline
census.py    what deserves a warning          report.py   the report, for people
verify.py    byte by byte against the index   findings.py names of what is counted
index.py     shards of other programs         deal.py     whole shards, dealt to splits
orientation.py  how EXIF turns images         config.py   settings
"""
