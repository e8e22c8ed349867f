"""What adapters fitted for the inputs of their layers gain: bits per byte by kind of text.

    python benchmarks/calibration.py RUN --text heldout.bin [--bits 8,4 ...] [--on prose ...]

The text is cut into pieces of 256 bytes, each of one kind: Python source, manual pages (troff), or
changes and other prose. Every second piece may be calibrated on, the others are scored. RUN is
exported in the format model, without calibration and with the pieces of one kind or of all, in the
checkpoint's type or in the bits given, and every folder is scored on every kind.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import torch

import globe_stream
from globe_stream.commands.export import export
from globe_stream.commands.models import folder_bits
from globe_stream.config import ExportConfig, RuntimeConfig, Windows
from globe_stream.evaluation.perplexity import score
from globe_stream.export.result import ExportResult
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.formatting import format_bytes

LENGTH, STRIDE = 256, 2_250
PIECES = Windows(count=1 << 20, length=LENGTH, stride=LENGTH)
KINDS = {"source": rb"\n {4,}\w|self\.|def ", "manual": rb"\n\.|\\f", "prose": rb""}
HEADS = ("bits", "bits a weight", "calibrated on", "relF up / gate", "weighted", *KINDS, "all")


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--text", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--bits", multiple=True, help="Bits of bank and adapters, as 8,4.")
@click.option("--on", multiple=True, type=click.Choice([*KINDS, "all"]), help="Default: each.")
def main(run: Path, text: Path, bits: tuple[str, ...], on: tuple[str, ...]) -> None:
    data = text.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scored = _by_kind(data, range(0, len(data) - LENGTH, STRIDE), folder / "scored")
        seen = _by_kind(data, range(STRIDE // 2, len(data) - LENGTH, STRIDE), folder / "seen")
        sizes = [f"{kind} {path.stat().st_size // LENGTH}" for kind, path in seen.items()]
        print(f"pieces to calibrate on: {', '.join(sizes)}\n")
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        with open_trained_run(run) as source:
            root = source.index.root
        _tell(["16", "16", "(the original)", "", ""], _scores(root, scored))
        texts_of = {k: (path,) for k, path in seen.items()} | {"all": tuple(seen.values())}
        for stored in bits or (None,):
            for name in ("nothing", *(on or texts_of)):
                texts = texts_of.get(name, ())
                out = folder / f"{stored}-{name}"
                made = _export(run, out, stored, texts)
                cells = [stored or made.dtype, f"{folder_bits(out):.2f}", name, *_errors(made)]
                _tell(cells, _scores(out, scored))
                click.echo(f"{name}: peak {format_bytes(made.peak_bytes)}", err=True)


def _by_kind(data: bytes, starts: range, folder: Path) -> dict[str, Path]:
    """Files of the pieces of `data` at `starts`, by the first kind whose marks are in one twice."""
    found: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for start in starts:
        piece = data[start : start + LENGTH]
        kind = next(k for k, mark in KINDS.items() if not mark or len(re.findall(mark, piece)) > 1)
        found[kind].append(piece)
    folder.mkdir()
    for kind, pieces in found.items():
        (folder / kind).write_bytes(b"".join(pieces))
    return {kind: folder / kind for kind in KINDS}


def _export(run: Path, out: Path, bits: str | None, texts: Sequence[Path]) -> ExportResult:
    wanted = ExportConfig(format="model", out=out, bits=bits, calibrate=tuple(texts))
    return export(run, wanted, runtime=RuntimeConfig(), silent=True)


def _errors(made: ExportResult) -> list[str]:
    told = made.calibration
    both = (made.relative_errors, {} if told is None else told.input_weighted_error)
    return [" / ".join(f"{one[k]:.4f}" for k in ("up", "gate") if k in one) for one in both]


def _scores(folder: Path, scored: dict[str, Path]) -> list[tuple[float, int]]:
    """Bits per byte of each kind, and the bytes that it was scored on."""
    if (folder / "globe_export.json").exists():
        model = globe_stream.from_pretrained(folder, dtype=torch.float32).eval()
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = [score(model, path, folder, PIECES) for path in scored.values()]
    return [(one.bits_per_byte, one.bytes) for one in found]


def _tell(cells: list[str], scores: list[tuple[float, int]]) -> None:
    whole = sum(bits * size for bits, size in scores) / sum(size for _, size in scores)
    values = [f"{value:.4f}" for value in (*(bits for bits, _ in scores), whole)]
    print(f"| {' | '.join([*cells, *values])} |", flush=True)


if __name__ == "__main__":
    main()
