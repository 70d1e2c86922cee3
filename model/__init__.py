"""What training and inference both need: the network, its weights, sizes and scores.

registry.py     names of networks             predictor.py   probabilities → masks, views averaged
segformer.py    SegFormer, random weights     tiles.py       large images, cut and blended
encoder.py      its encoder, faster           fuse.py        views, averaged on the device
head.py         its head, folded              pipeline.py    reading, computing, writing at a time
replace.py      faster modules, tried         score.py       confusion counts
classes.py      classifiers and labels        counts.py      … on the device
preprocess.py   image processors              precision.py   what is computed in which type
resizing.py     … and their sizes             memory.py      estimated before it is needed
sizes.py        sizes that a network takes    sync_batchnorm.py  over all processes
switches.py     frozen parts, checkpointing   upsample.py    bilinear, deterministic
view.py         one view of an image          device.py, meta.py, config.py
"""
