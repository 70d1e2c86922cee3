"""``cocoseg prepare``: annotations or label images become masks, and images + masks shards.

build.py         the build, top to bottom     sample.py     one image: checked, rasterized, encoded
plan.py          which image in which shard   rasterize.py  instances → mask
annotations.py   COCO JSON, read              outlines.py   polygons and RLE of an instance
lenient.py       COCO JSON of other forms     boxes.py      instances that have only a box
label_images.py  label images, listed, read   images.py     folders and archives of images
label_values.py  what their values mean       names.py      file names that differ in form
label_presets.py VOC, Cityscapes              workers.py    processes, Ray
forecast.py      --dry-run                    shard.py      one shard, built
changes.py       images changed since         publish.py    manifest, lists, settings
build_folder.py  what an interruption leaves  report.py     the report
result.py        what was made                selection.py  --only: the images that are used
config.py        settings
"""
