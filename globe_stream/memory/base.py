"""What the program itself takes, once every library that the stages need has been used."""

import psutil
import torch


def warm_up(device: torch.device) -> None:
    """Use every library once, so that what they load and keep is part of the measured base."""
    matrix = torch.eye(96, device=device).expand(4, 96, 96) * 2
    torch.linalg.cholesky_ex(torch.bmm(matrix, matrix))
    torch.linalg.eigh(torch.eye(96, dtype=torch.float64))
    torch.linalg.inv(torch.eye(96, dtype=torch.float64))


def measured_base() -> int:
    """Resident bytes of the process after `warm_up` on the CPU."""
    warm_up(torch.device("cpu"))
    return int(psutil.Process().memory_info().rss)
