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
import shutil
from dataclasses import replace
from pathlib import Path

import click
import torch
from commands import PEAK, PRICE, READ, SECONDS, bytes_moved, stage_costs, tool
from runs import machine_line, markdown

from globe_stream.engine.metrics import read_metrics
from globe_stream.formatting import format_bytes
from globe_stream.io.safetensors import read_header
from globe_stream.synthetic.stand_in import STAND_INS, StandIn, write_stand_in


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many layers.")
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
    stated = json.loads(tool("plan", model, *bank, *training.split(), *kept, "--json"))
    tool("seed", model, "--run", run, *bank, *kept)
    moved = bytes_moved("train", run, *training.split(), "--memory", memory)
    costs = stage_costs(read_metrics(run / "metrics.jsonl"))
    read = int(costs["up train"][READ])
    lines = [
        [stage, f"{one[SECONDS]:.0f}", format_bytes(int(one[PEAK])), format_bytes(int(one[PRICE]))]
        for stage, one in costs.items()
    ]
    click.echo(markdown(["stage", "seconds", "peak", "price"], lines))
    click.echo(
        f"\nbanks on disk, an epoch: stated {format_bytes(stated['spilled_epoch_bytes'])}; "
        f"files read and written: {format_bytes(moved - read)}, and of the checkpoint "
        f"{format_bytes(read)}\n\n{machine_line()}"
    )


def _written(model: Path, sizes: StandIn) -> Path:
    """A stand-in of the model whose up family is Gaussian, unless it is there."""
    if model.exists():
        return model
    unfinished = model.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_stand_in(unfinished, sizes)
    shape, generator = (sizes.intermediate, sizes.hidden), torch.Generator().manual_seed(0)
    for path in sorted(unfinished.glob("*.safetensors")):
        with path.open("r+b") as file:
            for entry in read_header(path).tensors:
                if ".experts." in entry.name and entry.name.endswith("up_proj.weight"):
                    file.seek(entry.start)
                    values = torch.randn(*shape, generator=generator).bfloat16()
                    file.write(values.view(torch.int16).numpy().tobytes())
    unfinished.rename(model)
    return model


if __name__ == "__main__":
    main()
