"""Whether adapters refitted for the inputs of their layer help: bits per byte by kind of text.

    python benchmarks/calibration.py RUN --text heldout.bin

The text is cut into pieces of 256 bytes, each of one kind: Python source, manual pages (troff), or
changes and other prose. The inputs of every layer's experts are taken on pieces of one kind, or of
all; then A_i becomes A_i + (W_i - W_hat_i) C H_i^T (H_i C H_i^T)^-1 with C the damped second moment
of the layer's inputs, and other pieces of every kind are scored. The bank stays as it is. For a
checkpoint whose tokens are bytes, in memory.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from globe_stream.export.factors import export_factors
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.inference.factors import Factors, load_factors

LENGTH, STRIDE = 256, 2_250
KINDS = {"source": rb"\n {4,}\w|self\.|def ", "manual": rb"\n\.|\\f", "prose": rb""}
DAMPINGS = (0.1, 1.0)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--text", required=True, type=click.Path(exists=True, path_type=Path))
def main(run: Path, text: Path) -> None:
    data = text.read_bytes()
    scored = _by_kind(data, range(0, len(data) - LENGTH, STRIDE))
    seen = _by_kind(data, range(STRIDE // 2, len(data) - LENGTH, STRIDE))
    with open_trained_run(run) as source:
        root = source.index.root
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32).eval()
    names = [kind for kind in KINDS if scored[kind]]
    print(f"| calibrated on | damping | {' | '.join(names)} | all |")
    print("|---|---|" + "---|" * (len(names) + 1))
    _tell("(the original)", "", model, scored)
    moments = {kind: _moments(model, seen[kind]) for kind in names}
    moments["all"] = [sum(parts) / len(parts) for parts in zip(*moments.values(), strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        export_factors(run, Path(scratch) / "factors", dtype="fp32")
        factors = load_factors(Path(scratch) / "factors")
        original = [layer.mlp.experts.gate_up_proj.detach().clone() for layer in _layers(model)]
        _replace(model, factors, original, None, 0.0)
        _tell("nothing", "", model, scored)
        for kind, second in moments.items():
            for damping in DAMPINGS:
                _replace(model, factors, original, second, damping)
                _tell(kind, str(damping), model, scored)


def _by_kind(data: bytes, starts: range) -> dict[str, list[bytes]]:
    """The pieces of `data` at `starts`, by the first kind whose marks make up enough of one."""
    found: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for start in starts:
        piece = data[start : start + LENGTH]
        kind = next(k for k, mark in KINDS.items() if not mark or len(re.findall(mark, piece)) > 1)
        found[kind].append(piece)
    return found


def _tokens(pieces: list[bytes]) -> Iterator[Tensor]:
    whole = [torch.frombuffer(bytearray(piece), dtype=torch.uint8).long() for piece in pieces]
    yield from torch.stack(whole).split(16)


def _layers(model: Any) -> list[Any]:
    return [layer for layer in model.model.layers if hasattr(layer.mlp, "experts")]


@torch.no_grad()
def _moments(model: Any, pieces: list[bytes]) -> list[Tensor]:
    """X^T X / tokens (d, d) of what every layer's experts are given, scaled to a mean of 1."""
    layers = _layers(model)
    sums = [0.0 for _ in layers]

    def noting(k: int) -> Any:
        def note(_: Any, given: tuple[Tensor, ...]) -> None:
            flat = given[0].flatten(0, -2)
            sums[k] = sums[k] + flat.T @ flat

        return note

    handles = [layer.mlp.register_forward_pre_hook(noting(k)) for k, layer in enumerate(layers)]
    for tokens in _tokens(pieces):
        model(tokens)
    for handle in handles:
        handle.remove()
    return [moment / moment.diagonal().mean() for moment in sums]  # type: ignore[union-attr]


@torch.no_grad()
def _replace(
    model: Any,
    factors: Factors,
    original: list[Tensor],
    moments: list[Tensor] | None,
    damping: float,
) -> None:
    """Give the model the reconstructions, refitted for `moments` where there are any."""
    for number, layer in enumerate(_layers(model)):
        stacked = layer.mlp.experts.gate_up_proj
        p = stacked.shape[1] // 2
        for expert in range(len(stacked)):
            for block, family in enumerate(("gate", "up")):
                rows = slice(block * p, (block + 1) * p)
                fitted = factors.reconstruct(family, number, expert)
                if moments is not None:
                    hidden = factors.hidden(*factors.find(family, number, expert))
                    metric = moments[number] + damping * torch.eye(len(moments[number]))
                    error = original[number][expert, rows] - fitted
                    side = metric @ hidden.T
                    change = torch.linalg.lstsq(hidden @ side, (error @ side).T).solution.T
                    fitted += change @ hidden
                stacked[expert, rows] = fitted


@torch.no_grad()
def _tell(name: str, damping: str, model: Any, scored: dict[str, list[bytes]]) -> None:
    bits: dict[str, Tensor] = {}
    for kind, pieces in scored.items():
        if pieces:
            losses = [
                torch.nn.functional.cross_entropy(
                    model(t).logits[:, :-1].flatten(0, 1), t[:, 1:].flatten(), reduction="none"
                )
                for t in _tokens(pieces)
            ]
            bits[kind] = torch.cat(losses) / torch.log(torch.tensor(2.0))
    row = [*(float(b.mean()) for b in bits.values()), float(torch.cat(list(bits.values())).mean())]
    print(f"| {name} | {damping} | {' | '.join(f'{value:.4f}' for value in row)} |", flush=True)


if __name__ == "__main__":
    main()
