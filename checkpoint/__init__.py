"""Checkpoints: what training hands over to inference, and a run to the run that resumes it.

layout.py       files and folders of a run    network.py      networks from names, folders, files
save.py         saved whole, and pruned       folder.py       Hugging Face folders, read and written
verified.py     read back and compared        weight_file.py  lone files of weights
state.py        the training state            published.py    weights of NVlabs and mmsegmentation
provenance.py   what weights began from
"""
