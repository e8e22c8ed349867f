"""A device's own allocator: capped, emptied between stages, and its refusals in one line.

On unified memory (MPS) the process has one budget, and what the allocator holds is part of it.
Source: docs/design.md, section Memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globe_stream.errors import InputError, option
from globe_stream.formatting import format_bytes


def whole_memory(device: torch.device) -> int | None:
    """Bytes that a process may use on `device`, as its driver recommends; None for the CPU."""
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return None


def held_bytes(device: torch.device) -> int:
    """Bytes that the allocator of `device` has from its driver; 0 for the CPU."""
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(torch.cuda.memory_reserved()) if device.type == "cuda" else 0


def cap(device: torch.device, limit: int) -> None:
    """Keep the allocator of unified memory below `limit` bytes: it then reuses freed blocks."""
    if device.type == "mps":
        share = limit / torch.mps.recommended_max_memory()
        torch.mps.set_per_process_memory_fraction(min(1.0, max(0.01, share)))


def release_cached(device: torch.device) -> None:
    """Give blocks that the allocator of `device` keeps for later back."""
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def explained_refusals(device: torch.device) -> Iterator[None]:
    """InputError, in one line, where `device` has no memory or no kernel left for the block."""
    try:
        yield
    except NotImplementedError as error:
        if device.type == "cpu":
            raise
        what = " ".join(str(error).split(". ", maxsplit=1)[0].split())
        raise InputError(
            f"{option('device')} {device.type}: {what}. "
            f"Use {option('device')} cpu, in a new run, and report it"
        ) from error
    except RuntimeError as error:
        if device.type == "cpu" or "out of memory" not in str(error):
            raise
        raise InputError(_no_memory(device)) from error


def _no_memory(device: torch.device) -> str:
    whole = whole_memory(device)
    of = "" if whole is None else f" of {format_bytes(whole)}"
    return (
        f"{option('device')} {device.type}: its memory is full, {format_bytes(held_bytes(device))}"
        f"{of} in use by this program. What was finished is kept: close programs that use the "
        f"device, or continue with a smaller {option('memory')}, so that batches are smaller"
    )
