"""A bank larger than the budget, at the size of a released model: does `plan` keep its word?

    python benchmarks/spilled_bank.py --folder /disk/large

Writes the up family of a Gaussian checkpoint of the sizes of Qwen1.5-MoE-A2.7B (24 x 60 experts of
1408 x 2048, 8.3 GB), seeds a bank of 720 atoms of rank 1056 (5.8 GiB) and trains one epoch of it
within `--memory`, each command a process of its own. Printed: each stage's seconds, peak and price,
and for the epoch what `plan` states of the banks on disk beside the bytes that the process read and
wrote of files, those of the checkpoint apart. Needs about seven times the bank of disk beside the
checkpoint; Linux.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from runs import machine_line, markdown

from globe_stream.engine.metrics import read_metrics
from globe_stream.formatting import format_bytes
from globe_stream.io.safetensors import read_header
from globe_stream.synthetic.stand_in import STAND_INS, StandIn, write_stand_in

PEAK, PRICE = "memory/peak_bytes", "memory/price_bytes"


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Only the first so many layers.")
@click.option("--rank", default=1056, show_default=True)
@click.option("--bases", default=720, show_default=True)
@click.option("--memory", default="8GiB", show_default=True)
@click.option("--seeding", default="--dictionary-rounds 20 --proxies rows", show_default=True)
@click.option("--training", default="--warmup-epochs 0 --epochs 1", show_default=True)
def main(
    folder: Path,
    layers: int | None,
    rank: int,
    bases: int,
    memory: str,
    seeding: str,
    training: str,
) -> None:
    whole = STAND_INS["qwen1.5-moe-a2.7b"]
    model = _written(folder / "model", replace(whole, layers=layers or whole.layers))
    run = folder / "run"
    bank = ["--bases", str(bases), "--rank", str(rank), *seeding.split()]
    kept = ["--families", "up", "--memory", memory]
    stated = json.loads(_tool("plan", str(model), *bank, *training.split(), *kept, "--json")[0])
    _tool("seed", str(model), "--run", str(run), *bank, *kept)
    _, moved = _tool("train", str(run), *training.split(), "--memory", memory)
    found = read_metrics(run / "metrics.jsonl")
    epochs = [row for row in found if row.stage == "train"]
    read = sum(row.number("io/bytes_read") or 0 for row in epochs)
    lines = [
        [
            row.stage,
            f"{sum(one.number('time/step_seconds') or 0 for one in epochs):.0f}"
            if row.stage == "train/memory"
            else f"{row.number('time/seconds') or 0:.0f}",
            format_bytes(int(row.number(PEAK) or 0)),
            format_bytes(int(row.number(PRICE) or 0)),
        ]
        for row in found
        if row.number(PRICE)
    ]
    click.echo(markdown(["stage", "seconds", "peak", "price"], lines))
    click.echo(
        f"\nbanks on disk, an epoch: stated {format_bytes(stated['spilled_epoch_bytes'])}; "
        f"files read and written: {format_bytes(int(moved - read))}, and of the checkpoint "
        f"{format_bytes(int(read))}\n\n{machine_line()}"
    )


def _written(model: Path, sizes: StandIn) -> Path:
    """A stand-in of the model whose up family is Gaussian, unless it is there."""
    if model.exists():
        return model
    write_stand_in(model, sizes)
    shape, generator = (sizes.intermediate, sizes.hidden), torch.Generator().manual_seed(0)
    for path in sorted(model.glob("*.safetensors")):
        with path.open("r+b") as file:
            for entry in read_header(path).tensors:
                if ".experts." in entry.name and entry.name.endswith("up_proj.weight"):
                    file.seek(entry.start)
                    values = torch.randn(*shape, generator=generator).bfloat16()
                    file.write(values.view(torch.int16).numpy().tobytes())
    return model


def _tool(*arguments: str) -> tuple[str, int]:
    """What a command of the tool prints, and the bytes that its process read and wrote of files."""
    click.echo(" ".join(["globe-stream", *arguments]), err=True)
    line = [sys.executable, "-m", "globe_stream", *arguments]
    moved = 0
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                counted: Any = watched.io_counters()
                moved = counted.read_chars + counted.write_chars
            except psutil.Error:
                break
            time.sleep(0.2)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise click.ClickException(f"{arguments[0]} ended with {process.returncode}")
    return printed, moved


if __name__ == "__main__":
    main()
