"""SegFormer: transformers' own forward and backward pass against ours, the same weights."""

import json
import subprocess
import sys
from collections.abc import Iterator

from measure import Row

_BOTH = """
import copy, json, sys, time
import torch
from measure import in_turn
from transformers import AutoModelForSemanticSegmentation
from cocoseg.model.classes import label_settings
from cocoseg.model.encoder import lighten_encoder
from cocoseg.model.head import fold_head
from cocoseg.model.memory import training_memory
from cocoseg.model.registry import architecture
from cocoseg.processes import keep_freed_memory
from cocoseg.taxonomy import coco_taxonomy

name, batch, size, forwards, steps = sys.argv[1], *map(int, sys.argv[2:])
keep_freed_memory()
torch.manual_seed(0)
settings = architecture(name)
settings.update(label_settings(coco_taxonomy()))
theirs = AutoModelForSemanticSegmentation.from_config(settings)
ours = copy.deepcopy(theirs)
assert fold_head(ours) and lighten_encoder(ours)
networks = {"theirs": theirs, "ours": ours}
pixels = torch.randn(batch, 3, size, size)

def forward(network):
    with torch.no_grad():
        start = time.perf_counter()
        logits[network] = network(pixel_values=pixels).logits
        return time.perf_counter() - start

def step(network):
    torch.manual_seed(1)
    start = time.perf_counter()
    loss = network(pixel_values=pixels).logits.square().mean()
    loss.backward()
    optimizers[network].step()
    optimizers[network].zero_grad()
    return time.perf_counter() - start

found, logits, optimizers = {}, {}, {}
for what, run, rounds in (("forward", forward, forwards), ("step", step, steps)):
    for network in networks.values():
        network.train(what == "step")
        if what == "step":
            optimizers[network] = torch.optim.AdamW(network.parameters(), lr=1e-5)
        run(network)  # the first takes longer
    if what == "forward":
        found["difference"] = (logits[theirs] - logits[ours]).abs().max().item()
        found["disagree"] = (logits[theirs].argmax(1) != logits[ours].argmax(1)).sum().item()
    functions = {key: lambda network=network: run(network) for key, network in networks.items()}
    found[what] = in_turn(functions, rounds)
found["activations"] = {
    key: training_memory(network, batch, size, optimizer_states=2, ema=False).activations
    for key, network in networks.items()
}
print(json.dumps(found))
"""

_CASES = (  # name, batch, side [pixels], rounds of the forward pass and of the step, their bars
    ("segformer-b5", 1, 512, 7, 5, 1.6, 1.3),
    ("segformer-b5", 2, 256, 5, 3, None, None),
    ("segformer-b0", 1, 512, 9, 7, None, None),
    ("segformer-b0", 4, 512, 5, 3, None, None),
)


def rows() -> Iterator[Row]:
    """Measure a forward pass without gradients and a step of AdamW, float32, and count memory."""
    for name, batch, size, forwards, steps, forward_bar, step_bar in _CASES:
        command = (sys.executable, "-c", _BOTH, name, batch, size, forwards, steps)
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=True,
            cwd=__file__.rpartition("/")[0],
        )
        found = json.loads(done.stdout)
        case = f"{name}, batch {batch}, {size}²"
        difference = f"{found['difference']:.0e}, {found['disagree']} pixels of another class"
        for what, key, bar in (
            (f"forward, eval (largest difference {difference})", "forward", forward_bar),
            ("forward, backward, AdamW", "step", step_bar),
        ):
            times = found[key]
            yield Row.speed(
                f"{case}: {what}", 1000 * times["theirs"], 1000 * times["ours"], bar, "ms"
            )
        held = found["activations"]
        yield Row.speed(
            f"{case}: activations held, counted",
            held["theirs"] / 1e6,
            held["ours"] / 1e6,
            None,
            "MB",
        )
