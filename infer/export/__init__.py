"""``cocoseg export``: ONNX, `torch.export`, and a folder for the Hugging Face hub.

run.py      by the name of the format   folder.py   a folder for transformers
graph.py    a graph in one file         card.py     its model card
network.py  what a graph computes       parity.py   compared with the network
program.py  torch.export                publish.py  written whole or not at all
onnx_model.py  ONNX                     devices.py  bound to no device
config.py   settings
"""
