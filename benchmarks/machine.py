"""What this machine does: GEMM speed, disk speed, and how much of the GEMM speed an epoch reached.

    python benchmarks/machine.py
    python benchmarks/machine.py --file model-00001-of-00003.safetensors --run DIR

GEMM speeds are the best of several products of square matrices; `medium` and `highest` are
PyTorch's settings for float32, with the error of each. Reading speeds are those of positioned reads
of a megabyte each, once after asking the kernel to drop the file's pages (cold; where that is
possible) and once again (warm). For a run, the epochs in its `metrics.jsonl` are compared with the
operations that `globe_stream.memory.operations` counts for one after the warm-up.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from runs import machine_line, markdown

from globe_stream.engine.device import Machine
from globe_stream.engine.metrics import MetricRow, read_metrics
from globe_stream.engine.records import MACHINE
from globe_stream.factorization.records import GroupRecord, run_header
from globe_stream.store.run import Run

READ_BYTES = 1 << 20
KINDS = ("float32 highest", "float32 medium", "bfloat16")


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--size", default=2048, show_default=True, help="Side of the matrices.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--file", type=click.Path(path_type=Path, exists=True), help="Time reading this.")
@click.option("--run", type=click.Path(path_type=Path, exists=True), help="A trained run.")
def main(size: int, repeats: int, file: Path | None, run: Path | None) -> None:
    click.echo(f"{machine_line()}\n")
    speeds = {kind: gemm(kind, size, repeats) for kind in KINDS}
    table = [[kind, f"{rate:.0f}", f"{error:.1e}"] for kind, (rate, error) in speeds.items()]
    click.echo(markdown([f"GEMM {size}", "GFLOP/s", "relative error"], table))
    if file is not None:
        click.echo("\n" + markdown(["reading", "MB/s"], list(_reading(file))))
    if run is not None:
        rates = {kind.split()[-1]: rate for kind, (rate, _) in speeds.items()}
        heads = ["epochs of", "s / epoch", "GFLOP / epoch", "GFLOP/s", "of GEMM speed"]
        click.echo("\n" + markdown(heads, list(_epochs(run, rates))))


def gemm(kind: str, size: int, repeats: int) -> tuple[float, float]:
    """(GFLOP/s, relative error against float64) of one kind of product."""
    before = torch.get_float32_matmul_precision()
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    if dtype == torch.float32:
        torch.set_float32_matmul_precision(kind.split()[1])
    try:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
        product = torch.mm(left, right)
        seconds = min(_timed(left, right, product) for _ in range(repeats))
        rows = left[:64].double() @ right.double()
        error = (product[:64].double() - rows).norm() / rows.norm()
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds / 1e9, float(error)


def _timed(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    begin = time.perf_counter()
    torch.mm(left, right, out=out)
    return time.perf_counter() - begin


def _reading(path: Path) -> Iterator[list[str]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            yield ["cold", f"{_read_all(descriptor):.0f}"]
        else:
            _read_all(descriptor)
        yield ["warm", f"{_read_all(descriptor):.0f}"]
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> float:
    """MB/s of reading the file from front to back."""
    buffer = bytearray(READ_BYTES)
    position, begin = 0, time.perf_counter()
    while count := os.preadv(descriptor, [buffer], position):
        position += count
    return position / (time.perf_counter() - begin) / 1e6


def _epochs(path: Path, rates: dict[str, float]) -> Iterator[list[str]]:
    """A row for every unit: its epochs after the warm-up against the GEMM speed it was set to."""
    run = Run(path, writable=False)
    machine = run.state(MACHINE, Machine)
    precision = "highest" if machine is None else machine.matmul_precision
    rows = [row for row in read_metrics(path / "metrics.jsonl") if row.stage == "train"]
    for group in run_header(run).groups:
        own = [r for r in rows if r.family == group.key and not r.values["schedule/warmup"]]
        if own:
            yield _epoch_row(group, own, precision, rates[precision])


def _epoch_row(group: GroupRecord, rows: list[MetricRow], precision: str, rate: float) -> list[str]:
    operations = (rows[0].number("compute/operations") or 0.0) / 1e9
    seconds = sorted(row.number("time/seconds") or 0.0 for row in rows)[len(rows) // 2]
    reached = operations / seconds
    return [
        f"{group.key} (median of {len(rows)}, {precision})",
        f"{seconds:.2f}",
        f"{operations:.0f}",
        f"{reached:.0f}",
        f"{reached / rate:.0%}",
    ]


if __name__ == "__main__":
    main()
