"""How near every stage comes to what the machine can do, and how long it waits for the disk.

    python benchmarks/roofline.py

Seeds and trains a Gaussian checkpoint for three epochs (one of warm-up), at the expert sizes of
Qwen1.5-MoE-A2.7B, and prints for each stage: its operations as counted, the product that takes most
of them, the rate of that product alone (the best of several, on as many threads), the rate of the
whole stage, their ratio, and the share of its time spent waiting for the disk. Few experts make the
fixed work of a stage count for more than in a real run. With `--cpu` rates are by CPU
seconds, for a machine that does other work too.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from runs import machine_line, markdown, scratch_folder
from time_to_quality import REGULAR, TREE, WARM, Checkout, Step, carried_out, written

from globe_stream.engine.device import float32_setting

REPEATS = 4
Product = tuple[str, Callable[[], torch.Tensor], float]
"""A product's name, what computes it, and its operations."""


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--layers", default=2, show_default=True, help="Of the written checkpoint.")
@click.option("--experts", default=24, show_default=True, help="A layer.")
@click.option("--hidden", default=2048, show_default=True)
@click.option("--intermediate", default=1408, show_default=True)
@click.option("--rank", default=1056, show_default=True)
@click.option("--bases", default=4, show_default=True)
@click.option("--memory", default="8GiB", show_default=True)
@click.option("--cpu", is_flag=True, help="Rates by CPU seconds.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where runs are kept meanwhile.")
def main(scratch: Path | None, cpu: bool, **given: Any) -> None:
    seeding = f"--rank {given['rank']} --bases {given['bases']}"
    given |= {"seeding": seeding, "training": "", "epochs": 3, "warmup_epochs": 1}
    with scratch_folder(scratch) as folder:
        model = written(folder / "model", given)
        checkout = Checkout("this tree", TREE, folder / "run")
        steps = [
            step
            for command in ("seed", "train")
            for step in carried_out(checkout, command, model, given)
        ]
    torch.set_float32_matmul_precision(float32_setting(torch.device("cpu"))[0])
    products = _products(given["intermediate"], given["hidden"], given["rank"])
    names = dict.fromkeys(step.name for step in steps)
    rows = [_row(name, steps, products[name], cpu=cpu) for name in names if name in products]
    heads = ["stage", "TFLOP", "seconds", "CPU s", "dominant", "alone, GFLOP/s", "stage, GFLOP/s"]
    click.echo(markdown([*heads, "attained", "waiting"], rows) + f"\n\n{machine_line()}")


def _products(p: int, d: int, r: int) -> dict[str, Product]:
    """The product that takes most operations of a stage, by the stage's name."""
    weights, mixture = torch.randn(1, p, d), torch.randn(1, r, d)
    turned, wide = torch.randn(1, r, p), torch.randn(p, d, dtype=torch.float64)
    seen: Product = ("W H^T", lambda: torch.bmm(weights, mixture.mT), 2.0 * p * r * d)
    step: Product = ("G X of a rotation", lambda: torch.bmm(square, turned), 2.0 * r * r * p)
    square = torch.randn(1, r, r)
    spectrum: Product = ("W W^T, float64", lambda: wide @ wide.T, 2.0 * p * p * d)
    return {
        "seed/statistics": step,
        "seed/proxies": step,
        "seed/measure": seen,
        "seed/baseline": spectrum,
        WARM: step,
        REGULAR: seen,
    }


def _row(name: str, steps: list[Step], product: Product, *, cpu: bool) -> list[str]:
    own = [step for step in steps if step.name == name]
    seconds, processor, operations, waited = (
        median(getattr(step, key) for step in own)
        for key in ("seconds", "cpu_seconds", "operations", "waited")
    )
    title, compute, count = product
    alone = count / min(_timed(compute, cpu=cpu) for _ in range(REPEATS))
    rate = operations / (processor if cpu else seconds)
    return [
        name,
        f"{operations / 1e12:.3f}",
        f"{seconds:.1f}",
        f"{processor:.1f}",
        title,
        f"{alone / 1e9:.0f}",
        f"{rate / 1e9:.0f}",
        f"{rate / alone:.0%}",
        f"{waited / seconds:.1%}",
    ]


def _timed(compute: Callable[[], torch.Tensor], *, cpu: bool) -> float:
    clock = time.process_time if cpu else time.perf_counter
    begin = clock()
    compute()
    return clock() - begin


if __name__ == "__main__":
    main()
