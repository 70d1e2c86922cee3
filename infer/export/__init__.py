"""Checkpoints in other programs' formats: ONNX, `torch.export`, and a folder for the hub.

In infer's room: what is exported is what infer loads, and is compared with what infer computes.
"""
