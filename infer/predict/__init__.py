"""``cocoseg infer``: masks for images.

run.py        from images to masks        outputs.py    the files of one image
inputs.py     which images                progress.py   what an interrupted run has done
coco_json.py  masks as COCO annotations
"""
