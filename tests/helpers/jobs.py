"""Commands over several processes, as `torchrun` starts them, without its own interpreter."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import support


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def as_rank(rank: int, size: int, port: int, target: Callable[..., None], *arguments: Any) -> None:
    """`target(*arguments)` with the environment that `torchrun` gives process `rank` of `size`."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    target(*arguments)


def codes_of(
    size: int, target: Callable[..., None], arguments: Callable[[int], tuple]
) -> list[int]:
    """Exit codes of `size` processes that carry out `target(*arguments(rank))` together."""
    port = free_port()
    processes = [
        support.start(as_rank, rank, size, port, target, *arguments(rank)) for rank in range(size)
    ]
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def job(
    arguments: list[str],
    log: Path,
    size: int,
    event: int | None = None,
    victim: int = 1,
    number: int = support.KILL,
) -> list[int]:
    """Exit codes of a command over `size` processes; `victim` is sent a signal at its `event`."""
    return codes_of(
        size,
        support.command,
        lambda rank: (
            arguments,
            log.with_suffix(f".{rank}"),
            event if rank == victim else None,
            number,
        ),
    )
