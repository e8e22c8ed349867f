"""Commands in processes of their own, whose highest resident memory is read from outside."""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import support

_SECONDS = 0.002
"""Between two looks at a process, whose meter sets the mark back at the beginning of a stage."""


@dataclass(frozen=True)
class Ended:
    """What a process printed: its JSON, and all of it; and its highest resident memory in bytes."""

    document: Any
    told: str
    peak: int


def run_stage(*arguments: object) -> Ended:
    """Run a command with --json in a process of its own."""
    return run_measured(support.plain_command, [*map(str, arguments), "--json"])


def run_measured(target: Callable[..., None], arguments: list[str], number: int = 0) -> Ended:
    """`target(arguments, log, number)`, which tells in the file `log`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = support.start(target, arguments, log, number)
        peak = 0
        while process.is_alive():
            peak = max(peak, _high_water(process.pid))
            process.join(_SECONDS)
        told = log.read_text()
    assert process.exitcode == 0, told[-2000:]
    document = next(line for line in reversed(told.splitlines()) if line.startswith("{"))
    return Ended(json.loads(document), told, peak)


def with_what_is_needed(arguments: list[str], log: Path, spare: int) -> None:
    """Run a command that scores in 200 MiB, which it refuses, then in what it asked for.

    And `spare` bytes more, which is told as `limit N`. Both in this process, so that the program
    itself takes the same.
    """
    from globe_stream.cli.main import run

    support.prepare_plain(log)
    assert run([*arguments, "--memory", "200MiB"]) == 2
    needed = re.search(r"scoring needs ([\d.]+) MiB", log.read_text())
    assert needed
    limit = int(float(needed[1]) * (1 << 20)) + spare
    print("limit", limit, flush=True)
    sys.exit(run([*arguments, "--memory", str(limit)]))


def export_within(arguments: list[str], log: Path, room: int) -> None:
    """Export KIND, with its BITS after a blank, of RUN to OUT, in `room` above the program itself.

    Tells base, peak and price in bytes.
    """
    from globe_stream.export.dense import export_dense
    from globe_stream.export.factors import export_factors
    from globe_stream.export.model import export_model
    from globe_stream.memory.allocator import return_freed_memory
    from globe_stream.memory.base import measured_base

    support.prepare_plain(log)
    return_freed_memory()
    base = measured_base()
    kind, run, out = arguments
    name, _, bits = kind.partition(" ")
    export: Any = {"dense": export_dense, "factors": export_factors, "model": export_model}[name]
    options = {"bits": tuple(map(int, bits.split(",")))} if bits else {}
    made = export(Path(run), Path(out), memory=base + room, **options)
    print(json.dumps({"base": base, "peak": made.peak_bytes, "price": made.price_bytes}))
    sys.stdout.flush()


def _high_water(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0")
    return 1024 * int(line.split()[1])
