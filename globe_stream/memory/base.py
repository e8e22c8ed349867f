"""What the program itself takes, once every library that the stages need has been used."""

import numpy as np
import psutil
import torch
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore


def warm_up(device: torch.device) -> None:
    """Use every library once, so that what they load and keep is part of the measured base."""
    matrix = torch.eye(96, device=device).expand(4, 96, 96) * 2
    torch.linalg.cholesky_ex(torch.bmm(matrix, matrix))
    torch.linalg.eigh(torch.eye(96, dtype=torch.float64))
    torch.linalg.inv(torch.eye(96, dtype=torch.float64))
    stored = zarr.create_array(
        MemoryStore(), data=np.zeros((4, 4), "f4"), zarr_format=3, compressors=[Crc32cCodec()]
    )
    np.asarray(stored[...])


def measured_base() -> int:
    """Resident bytes of the process after `warm_up` on the CPU."""
    warm_up(torch.device("cpu"))
    return int(psutil.Process().memory_info().rss)
