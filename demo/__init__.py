"""``cocoseg demo``: a small COCO data set is drawn, so that every stage can be tried offline.

run.py          the full pipeline             objects.py      eight kinds of things
scenes.py       images and their annotations  backgrounds.py  where they are
composition.py  objects in front of others    sketch.py       the pen
annotations.py  polygons, RLE, crowds
"""
