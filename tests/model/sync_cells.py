"""One rank of a group: synchronized batch norm over uneven parts of a batch; saves what came out.

    sync_cells.py STORE RANK WORLD OUT CELLS

CELLS is JSON, a list of settings (see `whole_batch`). Imports torch alone beside what is tested.
"""

import functools
import json
import sys

import torch
import torch.distributed as dist
from torch import nn

CHANNELS = 5
PARTS = {2: (3, 1), 3: (2, 1, 4)}
"""Images of each rank, by world size."""


def whole_batch(cell):
    """Images, the gradient of the output, and a plain batch norm, all of the cell's type."""
    generator = torch.Generator().manual_seed(cell.get("seed", 0))
    images = sum(PARTS[cell["world"]])
    x = torch.randn(images, CHANNELS, 6, 7, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.5, 2, CHANNELS).view(-1, 1, 1) + cell.get("offset", 0.0)
    # Each image of another mean: without the differences between ranks nothing would be tested.
    x = x + torch.arange(images).view(-1, 1, 1, 1)
    gradient = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    norm = nn.BatchNorm2d(CHANNELS, momentum=cell.get("momentum", 0.1), affine=cell["affine"])
    with torch.no_grad():
        for tensor in norm.parameters():
            tensor.uniform_(0.5, 2, generator=generator)
    dtype = getattr(torch, cell["dtype"])
    if cell.get("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    norm = norm.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    return x.to(dtype), gradient.to(dtype), norm.train()


def outcome(run, norm, x, gradient):
    """Two steps; return the second's output and gradients, and the statistics."""
    for _ in range(2):
        norm.zero_grad(set_to_none=True)
        x = x.detach().requires_grad_()
        out = run(x)
        out.backward(gradient)
    found = {"out": out.detach(), "x": x.grad, **dict(norm.named_buffers())}
    found |= {f"d_{name}": p.grad for name, p in norm.named_parameters()}
    return {name: value.clone() for name, value in found.items()}


def main():
    from cocoseg.model.sync_batchnorm import SyncBatchNorm2d, synchronize_batch_norms
    from torch.utils.checkpoint import checkpoint

    store, rank, world, out, cells = sys.argv[1:]
    rank, world = int(rank), int(world)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    first = sum(PARTS[world][:rank])
    own = slice(first, first + PARTS[world][rank])
    found = []
    for cell in json.loads(cells):
        x, gradient, norm = whole_batch(cell)
        wrapped = nn.Sequential(norm)
        synchronize_batch_norms(wrapped)
        assert type(norm) is SyncBatchNorm2d

        run = wrapped
        if cell.get("recomputed"):
            run = functools.partial(checkpoint, wrapped, use_reentrant=False)

        found.append(outcome(run, norm, x[own], gradient[own]))
    torch.save(found, f"{out}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
