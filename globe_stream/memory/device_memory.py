"""A device with memory of its own: its budget, its allocator, and its refusals in one line.

On unified memory (MPS) the process has one budget, and what the allocator holds is part of it.
Source: docs/design.md, section Memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globe_stream.errors import InputError, option
from globe_stream.formatting import format_bytes, parse_size

SHARE = 0.9
"""Of a GPU's memory, where no budget for it is given."""
STEP = 64 << 20


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


def given_limit(kind: str, wanted: str | None) -> int | None:
    """Bytes of the budget `wanted` for a device of `kind`, here or on another machine.

    InputError if one is wanted for a device that computes in the machine's memory.
    """
    if wanted is None:
        return None
    if kind != "cuda":
        raise InputError(
            f"{option('device_memory')} is for cuda: {kind} computes in the machine's "
            f"own memory. Leave it out and give {option('memory')}"
        )
    return parse_size(wanted)


def device_limit(device: torch.device, wanted: str | None) -> int | None:
    """Bytes that arrays may take of a GPU's own memory: `wanted`, or a share of all it has.

    None where the device computes in the machine's memory; InputError if `wanted` is given there,
    or is more than the GPU has.
    """
    limit = given_limit(device.type, wanted)
    whole = whole_memory(device) if device.type == "cuda" else None
    if whole is None:
        return None
    if limit is None:
        return int(SHARE * whole)
    if limit > whole:
        raise InputError(
            f"{option('device_memory')} {wanted}: the GPU has {format_bytes(whole)}. Give less"
        )
    return limit


def within(limit: int, base: int, device_bytes: int | None) -> int:
    """The budget `limit` of a process that holds `base`, lowered to what its GPU can hold.

    Arrays are priced as if they lay in one place. Whole steps of 64 MiB, so that a base that
    differs a little from one start to the next gives the same budget.
    """
    if device_bytes is None:
        return limit
    return min(limit, (base + device_bytes) // STEP * STEP)


def cap(device: torch.device, limit: int) -> None:
    """Keep the device's allocator below `limit` bytes: it then reuses freed blocks."""
    whole = whole_memory(device)
    if whole is None:
        return
    share = min(1.0, max(0.01, limit / whole))
    if device.type == "mps":
        torch.mps.set_per_process_memory_fraction(share)
    else:
        torch.cuda.set_per_process_memory_fraction(share)


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
