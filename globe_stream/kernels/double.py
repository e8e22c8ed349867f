"""Double precision: on a tensor's own device where it has it, else on the CPU, after the copy.

MPS has no float64: a float32 tensor is copied to the CPU first and widened there, which gives the
same values. Source: docs/design.md, section Numerics.
"""

import torch
from torch import Tensor


def double_device(device: torch.device) -> torch.device:
    """Where float64 tensors that belong to `device` are."""
    return torch.device("cpu") if device.type == "mps" else device


def widened(values: Tensor) -> Tensor:
    """`values` as float64, on their `double_device`; themselves if they are that already."""
    return values.to(double_device(values.device)).double()
