"""Planted faults that the counts must show."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from cases_common import DEVICE
from counter import Counter
from device import fake_device
from torch import Tensor, nn


class _Network(nn.Module):
    """A layer with a fault in its forward."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.fault = fault

    def forward(self, x_BC: Tensor) -> Tensor:
        x_BC = self.linear(x_BC)
        if self.fault == "mismatch":
            return x_BC + torch.ones(4)
        if self.fault == "item":
            return x_BC * x_BC.sum().item()
        if self.fault == "tolist":
            return x_BC * x_BC.sum(1).tolist()[0]
        if self.fault == "branch":
            return x_BC if (x_BC > 0).all() else -x_BC
        if self.fault == "mask":
            return x_BC[x_BC > 0]
        if self.fault == "constant":
            return x_BC + torch.tensor([1.0, 2.0, 3.0, 4.0], device=x_BC.device)
        if self.fault == "to":
            return x_BC + torch.ones(4).to("cuda")
        if self.fault == "thread":
            with ThreadPoolExecutor(1) as pool:
                return x_BC + pool.submit(lambda: torch.zeros(4).to("cuda")).result()
        if self.fault == "non-blocking":
            return x_BC + torch.ones(4).to("cuda", non_blocking=True)
        if self.fault in ("pageable", "page-locked"):
            host = torch.empty(2**15, pin_memory=self.fault == "page-locked")
            return x_BC + host.to("cuda", non_blocking=True)[:4]
        if self.fault == "synchronize":
            torch.cuda.synchronize()
        if self.fault == "host index":
            return x_BC[:, torch.tensor([0, 1])]
        return x_BC


def planted(counter: Counter, *, fault: str, inference: bool = False) -> None:
    """Run forward and, unless `inference`, backward of a layer with a fault."""
    with fake_device():
        network = _Network(fault).to(DEVICE)
        x_BC = torch.empty(2, 4, device=DEVICE)
        with counter, torch.inference_mode(inference):
            out = network(x_BC)
            if not inference:
                out.sum().backward()


def crash(counter: Counter) -> None:
    """End the process, as an assertion in C++ does."""
    os.abort()
