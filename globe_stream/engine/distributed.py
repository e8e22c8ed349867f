"""Joins the processes that `torchrun` started into one `World`, and lets one of them speak.

gloo carries tensors of the CPU, nccl those of GPUs, one GPU a process. A process that dies is
noticed by the others at their next exchange; one that hangs, after TIMEOUT.
"""

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from globe_stream.io.world import ALONE, PeerLost, World

TIMEOUT = timedelta(hours=1)
"""The longest that a process waits for another: more than one takes for its part of any stage."""
_SAID = "globe-stream/said"

_joined: tuple[World, dist.Store] | None = None


def join() -> World:
    """The world of this process: that of `torchrun`, joined at the first call, or ALONE."""
    global _joined
    if _joined is not None:
        return _joined[0]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    store, rank, size = next(iter(dist.rendezvous("env://")))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("globe-stream", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    atexit.register(dist.destroy_process_group)
    world = World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    _joined = (world, store)
    return world


def speaks(error: Exception | None = None) -> bool:
    """Whether this process prints: results if it leads, an `error` if no other has told of it.

    Of a process that ended only the loss is told, and only if nothing else was.
    """
    if _joined is None:
        return True
    world, store = _joined
    if error is None:
        return world.leads
    try:
        told: int = store.add(_SAID, 1)
    except RuntimeError:  # the process that kept the store is gone
        return world.rank == 1 or not isinstance(error, PeerLost)
    return told == 1
