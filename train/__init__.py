"""``cocoseg train``: from shards to checkpoints, on one process or under torchrun.

run.py        a run, top to bottom            step.py        forward, backward, update
run_plan.py   decided before the first step   losses/        losses of one image, by name
trainer.py    the loop: steps, scores, saves  optimizer.py   groups of weights, learning rates
resume.py     which checkpoint is resumed     schedule.py    warmup and decay
batches.py    loader processes                ema.py         moving average of the weights
augment/      training transforms             class_weights.py  from the pixels of the shards
validation.py scores while training           bad_samples.py damaged samples, left out
run_log.py    metrics.jsonl and TensorBoard   out_of_memory.py  what to change
pace.py       time spent waiting for data     pictures.py    validation images
pruning.py    old checkpoints, removed        interrupt.py   Ctrl-C and SIGTERM
summary.py    what is logged at the start     kernels.py     deterministic kernels
network.py    the network as it is trained    config.py      settings
"""
