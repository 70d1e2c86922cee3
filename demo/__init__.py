"""The demo room: draws a small COCO-format data set, so that every stage can be tried offline."""
