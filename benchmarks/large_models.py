"""What the largest open models would take: `plan` on stand-ins of their checkpoints.

    python benchmarks/large_models.py
    python benchmarks/large_models.py --models deepseek-v3 --scopes layers:4 --processes 8

A stand-in has the config and the tensors' headers of the published checkpoint, in sparse files that
take no room on the disk. Up and gate, default options but for `--bank-scope`. Hours are of the
epochs alone, from the operations and bytes that `plan` counts and the rates given here: each
process computes at --gflops and reads at --disk, one after the other.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from runs import machine_line, markdown, scratch_folder

from globe_stream.commands.estimate import RunEstimate
from globe_stream.commands.plan import plan
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.errors import InputError, spelled
from globe_stream.formatting import format_bytes
from globe_stream.synthetic.stand_in import STAND_INS, write_stand_in

MODELS = "qwen3-235b-a22b,deepseek-v3,kimi-k2"
SCOPES = "layer,layers:4,global"
HEADS = [
    "model", "scope", "banks", "m x r", "kept", "memory a process",
    "read", "banks on disk", "hours", "disk",
]  # fmt: skip


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--models", default=MODELS, show_default=True, metavar="A,B,...")
@click.option("--scopes", default=SCOPES, show_default=True, metavar="A,B,...")
@click.option("--processes", default=8, show_default=True, help="Under torchrun.")
@click.option("--memory", default="48GiB", show_default=True, help="Budget of each process.")
@click.option("--epochs", default=20, show_default=True)
@click.option("--gflops", default=1000.0, show_default=True, help="Of each process, in float32.")
@click.option("--disk", default=2.0, show_default=True, help="GB/s of each process.")
@click.option("--layers", type=int, help="Only the first so many layers with experts.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where stand-ins are written.")
def main(models: str, scopes: str, layers: int | None, scratch: Path | None, **given: Any) -> None:
    rows = []
    with scratch_folder(scratch) as folder:
        for name in models.split(","):
            model = STAND_INS[name]
            if layers is not None:
                model = replace(model, layers=model.dense + layers)
            path = str(write_stand_in(folder / name, model))
            rows += [row(name, path, scope, **given) for scope in scopes.split(",")]
    click.echo(
        f"{given['processes']} processes of {given['memory']}, {given['gflops']:.0f} GFLOP/s and "
        f"{given['disk']:g} GB/s each, {given['epochs']} epochs\n\n{markdown(HEADS, rows)}\n\n"
        f"{machine_line()}"
    )


def row(name: str, path: str, scope: str, **given: Any) -> list[str]:
    """The table's row for the checkpoint at `path` with banks of `scope`."""
    try:
        found = plan(
            path,
            SelectionConfig(),
            SeedConfig(bank_scope=scope),
            TrainConfig(epochs=given["epochs"]),
            RuntimeConfig(memory=given["memory"], device="cpu"),
            given["processes"],
        )
    except InputError as error:
        return [name, scope, spelled(error.message), *[""] * (len(HEADS) - 3)]
    units = list(found.units.values())
    kept = sum(u.parameter_ratio * u.experts for u in units) / sum(u.experts for u in units)
    return [
        name,
        scope,
        str(len(units)),
        f"{units[0].bases} x {units[0].rank}",
        f"{kept:.0%}",
        format_bytes(found.peak_memory_bytes),
        format_bytes(found.bytes_read),
        format_bytes(given["epochs"] * found.spilled_epoch_bytes),
        f"{hours(found, **given):.1f}",
        format_bytes(found.disk_bytes),
    ]


def hours(found: RunEstimate, processes: int, epochs: int, gflops: float, disk: float,
          **_: Any) -> float:  # fmt: skip
    """Hours of all epochs: arithmetic, reading, and banks on disk, which every process has."""
    arithmetic = found.epoch_flops / (1e9 * gflops * processes)
    reading = found.epoch_bytes_read / processes + found.spilled_epoch_bytes
    return epochs * (arithmetic + reading / (1e9 * disk)) / 3600


if __name__ == "__main__":
    main()
