"""Logits of folders of models from mlx-lm against those from transformers, on a text, in float32.

    python benchmarks/mlx_logits.py FOLDER... --text FILE [--windows 4] [--length 128]

Prints the largest logit, the largest difference, and the bits per byte that both give.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from runs import markdown

import globe_stream

HEADS = ("folder", "largest logit", "largest difference", "transformers", "mlx-lm")
STRIDE = 9000
"""Bytes from the beginning of a window to that of the next, as in `eval`."""


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--windows", default=4, show_default=True)
@click.option("--length", default=128, show_default=True, help="Tokens of a window.")
def main(folders: tuple[Path, ...], text: Path, windows: int, length: int) -> None:
    data = text.read_bytes()
    starts = range(0, windows * STRIDE, STRIDE)
    tokens = np.array([list(data[start : start + length]) for start in starts], dtype=np.int64)
    rows = []
    for folder in folders:
        expected, found = by_transformers(folder, tokens), by_mlx(folder, tokens)
        difference = float(np.abs(found - expected).max())
        largest = float(np.abs(expected).max())
        scores = (f"{bits(logits, tokens):.6f}" for logits in (expected, found))
        rows.append([folder.name, f"{largest:.2f}", f"{difference:.1e}", *scores])
    click.echo(markdown(list(HEADS), rows))


def by_transformers(folder: Path, tokens: Any) -> Any:
    """Logits (windows, length, vocabulary) float32."""
    model = globe_stream.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens)).logits.numpy()


def by_mlx(folder: Path, tokens: Any) -> Any:
    """Logits (windows, length, vocabulary) float32."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, trust_remote_code=True)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(tokens)))


def bits(logits: Any, tokens: Any) -> float:
    """Bits that predicting each next token takes, on average."""
    scores = torch.from_numpy(logits[:, :-1]).log_softmax(-1).double()
    taken = scores.gather(-1, torch.from_numpy(tokens[:, 1:, None]))
    return float(-taken.mean() / np.log(2))


if __name__ == "__main__":
    main()
