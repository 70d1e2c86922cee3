"""``cocoseg demo``: a small COCO data set is drawn, so that every stage can be tried offline.

run.py          the full pipeline             objects.py      thirteen kinds of things
scenes.py       images and their annotations  backgrounds.py  where they are
composition.py  objects in front of others    outlines.py     shapes
annotations.py  polygons, RLE, crowds         sketch.py       the pen
"""
