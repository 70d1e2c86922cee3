"""The training loop: what it costs beside the bare step, and how long it waits for data."""

import json
from collections.abc import Iterator
from pathlib import Path

from measure import Row, last_line
from prepare.data import Pictures

_SHARD = 64  # samples
_BOTH = """
import copy, json, statistics, sys, tempfile, time
import torch
from cocoseg.model.config import ModelConfig
from cocoseg.train import trainer as module
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.run import train_model

shards, name, size, batch, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
bare, ours = [], []
start = module.Trainer.start.__func__
real = module.micro_batches

def started(cls, *arguments):
    trainer = start(cls, *arguments)
    learn = trainer.learn
    network = copy.deepcopy(learn.network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(micro):
        began = time.perf_counter()
        x = learn.normalize(micro.images)
        loss = learn.loss(network(pixel_values=x).logits, micro.masks.long(), *micro.denominators)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    def preloaded(*options, **named):
        (micros,) = next(real(*options, **named))  # one batch, ready
        for i in range(steps):
            if i:
                ours.append(time.perf_counter() - handed)
            bare.append(step(micros))
            handed = time.perf_counter()
            yield [micros]

    module.micro_batches = preloaded
    return trainer

module.Trainer.start = classmethod(started)
with tempfile.TemporaryDirectory() as folder:
    config = TrainConfig(
        shards=(shards,), save_dir=folder, max_steps=steps, batch_size=batch, log_every=1,
        accumulation_steps=1, workers=0, device="cpu", checkpoint_every=10**9,
    )
    run(config, ModelConfig(name=name, input_size=size), AugmentConfig())
print(json.dumps([statistics.median(bare[5:]), statistics.median(ours[5:])]))
"""
_WAIT = """
import json, sys, tempfile, time
from pathlib import Path
from cocoseg.model.config import ModelConfig
from cocoseg.processes import warm_up
from cocoseg.train.config import AugmentConfig, TrainConfig

shards, seconds, batch, size, steps = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])
if __name__ == "__main__":
    warm_up("cocoseg.train.batches")
    from cocoseg.train import step
    from cocoseg.train.run import train_model

    def sleeps(self, *arguments):
        time.sleep(seconds)  # as a CPU does while a GPU computes
        return step.StepResult(1.0, 1.0, False, False)

    step.TrainingStep.__call__ = sleeps
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            shards=(shards,), save_dir=folder, max_steps=steps, batch_size=batch, log_every=steps,
            accumulation_steps=1, workers=2, device="cpu", checkpoint_every=10**9,
        )
        model = ModelConfig(name="segformer-tiny", input_size=size)
        run(config, model, AugmentConfig())
        first = (Path(folder) / "metrics.jsonl").read_text().splitlines()[0]
    print(first)
"""


def rows(pictures: Pictures, scratch: Path) -> Iterator[Row]:
    """Measure the loop on prepared shards of real or drawn photographs."""
    data = pictures.replicate(scratch / "loop", len(pictures.images))
    shards = data.shards(scratch / "loop-shards", _SHARD)
    for name, size, batch, steps in (("segformer-tiny", 128, 8, 65), ("segformer-b0", 256, 2, 45)):
        bare, ours = json.loads(last_line(_BOTH, shards, name, size, batch, steps))
        yield Row.limit(
            f"the loop's own bookkeeping, {name}, batch {batch}, {size}²: share of the bare step",
            100 * (ours - bare) / bare,
            3,
            "%",
            f"{1000 * bare:.1f} ms",
        )
    told = json.loads(last_line(_WAIT, shards, 0.1, 8, 512, 150))
    yield Row.limit(
        "waiting for data: steps of 100 ms, 8 × 512², two workers: share of the time",
        100 * told["data_wait"],
        3,
        "%",
        f"{told['images_per_second']:.1f} images/s",
    )
