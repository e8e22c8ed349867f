"""What benchmarks of whole commands share: carrying one out, and what its stages took."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from globe_stream.engine.metrics import MetricRow

SECONDS, READ = "seconds", "io/bytes_read"
PEAK, PRICE = "memory/peak_bytes", "memory/price_bytes"


def tool(*arguments: object) -> str:
    """What a command of the tool prints; its progress goes to standard error.

    A command that fails ends the benchmark with its exit code.
    """
    with _begun(arguments, subprocess.PIPE) as process:
        printed, _ = process.communicate()
    _require_success(process)
    return str(printed)


def bytes_moved(*arguments: object) -> int:
    """The bytes that a command of the tool reads and writes of files (Linux)."""
    with _begun(arguments, subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    _require_success(process)
    counted = dict(line.split(": ") for line in lines)
    return int(counted["rchar"]) + int(counted["wchar"])


def stage_costs(rows: Iterable[MetricRow]) -> dict[str, dict[str, float]]:
    """Seconds, bytes read, peak and price in bytes by unit and stage, epochs added up."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        stage = "train" if row.stage.startswith("train") else row.stage
        costs = found.setdefault(
            f"{row.family} {stage}", dict.fromkeys((SECONDS, READ, PEAK, PRICE), 0.0)
        )
        costs[SECONDS] += row.number("time/step_seconds") or row.number("time/seconds") or 0
        costs[READ] += row.number(READ) or 0
        for name in (PEAK, PRICE):
            costs[name] = max(costs[name], row.number(name) or 0)
    return {name: costs for name, costs in found.items() if costs[PRICE]}


def _begun(arguments: Iterable[object], output: int) -> subprocess.Popen[Any]:
    line = [sys.executable, "-m", "globe_stream", *map(str, arguments)]
    click.echo(" ".join(["globe-stream", *line[3:]]), err=True)
    return subprocess.Popen(line, stdout=output, text=True)


def _require_success(process: subprocess.Popen[Any]) -> None:
    if process.returncode:
        sys.exit(process.returncode)
