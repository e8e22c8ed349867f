"""What coarse products cost in error: seed and train at every precision, everything else alike.

    python benchmarks/precision.py MODEL --bases 60 --rank 99 --epochs 40
    python benchmarks/precision.py --dataset minilm --epochs 60

Coarse may be the products that only say where to go: gradients, the warm-up's rotations, and Gram
matrices inside those. Only CUDA has tf32; elsewhere its error is found by rounding the factors to
10 bits of fraction before each such product, which costs time and saves none. A precision may be a
device's default where its relF is within 0.0005 of float32's.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from minilm import write_minilm

from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.factorization.records import seeded_state
from globe_stream.kernels import coarse, gram, polar
from globe_stream.store.run import Run
from globe_stream.training import gradients

TOLERANCE = 0.0005
PRECISIONS = ("float32", "tf32", "bf16")


@click.command(help=__doc__)
@click.argument("model", required=False)
@click.option("--dataset", type=click.Choice(("minilm",)), help="Instead of MODEL.")
@click.option("--bases", default=60)
@click.option("--rank", default=99)
@click.option("--epochs", default=40)
@click.option("--device", default="cpu")
def main(
    model: str | None, dataset: str | None, bases: int, rank: int, epochs: int, device: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if dataset is not None:
            model, bases, rank = str(write_minilm(Path(scratch) / "minilm")), 18, 96
        if model is None:
            raise click.UsageError("give MODEL or --dataset")
        print(f"| precision | relF after {epochs} epochs | difference | within {TOLERANCE} |")
        print("|---|---|---|---|")
        exact = None
        for precision in PRECISIONS:
            run = Path(scratch) / precision
            if precision == "tf32" and device != "cuda":
                with _rounded_to_tf32():
                    error = _trained(model, run, bases, rank, epochs, device, "float32")
            else:
                error = _trained(model, run, bases, rank, epochs, device, precision)
            exact = error if exact is None else exact
            within = "yes" if abs(error - exact) <= TOLERANCE else "no"
            print(f"| {precision} | {error:.4f} | {error - exact:+.4f} | {within} |", flush=True)
    print(f"\ntorch {torch.__version__}, {device}")


@contextmanager
def _rounded_to_tf32() -> Iterator[None]:
    """Coarse products as CUDA takes them in tf32: factors to 10 bits, sums in float32."""

    def product(left: torch.Tensor, right: torch.Tensor, _: str) -> torch.Tensor:
        return torch.bmm(_tf32(left), _tf32(right))

    users = (gradients, gram, polar)
    for module in users:
        module.coarse_bmm = product  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.coarse_bmm = coarse.coarse_bmm  # type: ignore[attr-defined]


def _tf32(values: torch.Tensor) -> torch.Tensor:
    """float32 `values` rounded to the nearest of 10 bits of fraction."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)


def _trained(
    model: str, run: Path, bases: int, rank: int, epochs: int, device: str, precision: str
) -> float:
    """relF of family up after seeding and `epochs` epochs at `precision`."""
    runtime = RuntimeConfig().changed(device=device, precision=precision)
    seeding = SeedConfig(bases=bases, rank=rank, dictionary_support=bases)
    seed(model, run, SelectionConfig(families="up"), seeding, runtime, silent=True)
    train(run, TrainConfig(epochs=epochs, target_support="none"), runtime, silent=True)
    with Run(run, writable=False) as trained:
        return seeded_state(trained, "up").relative_frobenius_error


if __name__ == "__main__":
    main()
