"""From COCO instance annotations to a trained semantic segmentation model.

The repository root is this package: ``./shards/reader.py`` is ``cocoseg.shards.reader``.
"""

__version__ = "0.1.0"
