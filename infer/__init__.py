"""``cocoseg infer``, ``eval`` and ``export``: what a checkpoint is used for.

predict/      masks for images      predictor.py  the predictor that the settings mean
evaluate/     scores on shards      views.py      the views of test-time augmentation
export/       other formats         folder.py     what the output folders hold beside results
config.py     settings
"""
