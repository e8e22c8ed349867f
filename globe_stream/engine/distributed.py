"""Joins the processes that `torchrun` started into one `World`, and lets one of them speak.

gloo carries tensors of the CPU, nccl those of GPUs, one GPU a process. A process that dies is
noticed by the others at their next exchange; one that hangs, after TIMEOUT.
"""

import atexit
import os
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from globe_stream.io.world import ALONE, PeerLost, World

TIMEOUT = timedelta(hours=1)
"""The longest that a process waits for another: more than one takes for its part of any stage."""
_SAID = "globe-stream/said"


def join() -> World:
    """The world of this process: that of `torchrun`, joined at the first call, or ALONE."""
    return _joined()[0] if processes() > 1 else ALONE


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process prints: results if it leads, an `error` if none was told of before."""
    if processes() == 1:
        return True
    world, store = _joined()
    if error is None:
        return world.leads
    try:
        told: int = store.add(_SAID, 1)
    except RuntimeError:  # the first process kept the store and is gone
        return world.rank == 1 and isinstance(error, PeerLost)
    return told == 1


def processes() -> int:
    """How many processes `torchrun` started, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def _joined() -> tuple[World, Store]:
    store, rank, size = next(rendezvous("env://"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= local:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        backend,
        store=PrefixStore("globe-stream", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    atexit.register(dist.destroy_process_group)
    return World(rank, size, local), store
