"""Memory and time at the size of a released model: does the peak stay below the budget?

    python benchmarks/real_size.py --folder /disk/real

The defaults are the sizes of Qwen1.5-MoE-A2.7B (24 layers x 60 experts of 1408 x 2048, 17 GB of up
and gate), r = 0.75 p, m = 128, 8 GiB. The checkpoint is written unless it is there; then `seed` and
`train` run as commands of their own, on all layers and on the first few, so that the peak can be
seen not to grow with the number of layers. Runs are continued if they are there. `--families` and
smaller sizes make it shorter. Figures come from `metrics.jsonl`.
"""

from pathlib import Path
from typing import Any

import click
from commands import PEAK, PRICE, READ, SECONDS, stage_costs, tool
from runs import machine_line, markdown

from globe_stream.engine.metrics import MetricRow, read_metrics
from globe_stream.formatting import format_bytes


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@click.option("--layers", default=24, show_default=True)
@click.option("--experts", default=60, show_default=True)
@click.option("--hidden", default=2048, show_default=True)
@click.option("--intermediate", default=1408, show_default=True)
@click.option("--few", default=6, show_default=True, help="Layers of the smaller run.")
@click.option("--bases", default=128, show_default=True)
@click.option("--rank-ratio", default=0.75, show_default=True)
@click.option("--families", default="both", type=click.Choice(("up", "gate", "both")))
@click.option("--memory", default="8GiB", show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--warmup-epochs", default=0, show_default=True)
@click.option("--method", default=None, help="Seeding method (default: the tool's own).")
@click.option("--device", default="cpu", show_default=True)
def main(**given: Any) -> None:
    folder: Path = given["folder"]
    model = folder / "model"
    _write_model(model, given)
    runs = {}
    for layers in (given["layers"], given["few"]):
        path = folder / f"run-{layers}"
        _seed_and_train(model, path, layers, given)
        runs[layers] = read_metrics(path / "metrics.jsonl")
    click.echo(_report(runs, given))


def _write_model(model: Path, given: dict[str, Any]) -> None:
    if (model / "model.safetensors.index.json").exists():
        return
    sizes = ("layers", "experts", "hidden", "intermediate")
    tool("synth", "--out", model, *(part for n in sizes for part in (f"--{n}", given[n])))


def _seed_and_train(model: Path, run: Path, layers: int, given: dict[str, Any]) -> None:
    shared = ("--memory", given["memory"], "--device", given["device"])
    method = () if given["method"] is None else ("--method", given["method"])
    tool(
        *("seed", model, "--run", run, "--layers", f"0:{layers}", *method, *shared),
        *("--families", given["families"], "--bases", given["bases"]),
        *("--rank-ratio", given["rank_ratio"]),
    )
    warmup = ("--warmup-epochs", given["warmup_epochs"])
    tool("train", run, "--epochs", given["epochs"], *warmup, *shared)


def _report(runs: dict[int, list[MetricRow]], given: dict[str, Any]) -> str:
    many, few = (stage_costs(rows) for rows in runs.values())
    counts = list(runs)
    heads = ["stage", "seconds", "read", "peak", "price", "peak / price"]
    heads += [f"peak at {counts[1]} layers", f"{counts[0]} / {counts[1]} layers"]
    lines = [
        [
            stage,
            f"{row[SECONDS]:.0f}",
            format_bytes(int(row[READ])),
            format_bytes(int(row[PEAK])),
            format_bytes(int(row[PRICE])),
            f"{row[PEAK] / row[PRICE]:.3f}",
            format_bytes(int(few[stage][PEAK])) if stage in few else "",
            f"{row[PEAK] / few[stage][PEAK]:.3f}" if stage in few else "",
        ]
        for stage, row in many.items()
    ]
    highest = [int(max(row[PEAK] for row in found.values())) for found in (many, few)]
    return (
        f"{counts[0]} x {given['experts']} experts of {given['intermediate']} x {given['hidden']}, "
        f"m = {given['bases']}, --memory {given['memory']}\n\n{markdown(heads, lines)}\n\n"
        f"Highest peak: {format_bytes(highest[0])} at {counts[0]} layers, "
        f"{format_bytes(highest[1])} at {counts[1]}: ratio {highest[0] / highest[1]:.3f}\n\n"
        f"{machine_line()}"
    )


if __name__ == "__main__":
    main()
