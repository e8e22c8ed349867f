"""The scores of the frontier as a picture."""

from pathlib import Path

from globe_stream.commands.variants import parse_variants
from globe_stream.errors import InputError, option
from globe_stream.evaluation.comparison import ModelComparison, Row
from globe_stream.io import files
from globe_stream.report.frontier import FrontierPoint, frontier_picture

KINDS = ("png", "svg")


def require_picture(path: Path) -> None:
    """InputError for a file that is no picture, or whose folder is missing."""
    if path.suffix[1:].lower() not in KINDS:
        raise InputError(f"{option('picture')} {path}: name a .png or .svg file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option('picture')} {path}: its folder does not exist. Make it first")


def write_picture(path: Path, comparison: ModelComparison) -> None:
    """Write the picture of all rows with bits a weight to the file `path`."""
    rows = comparison.rows
    points = [
        FrontierPoint(_series(row), row.bits_per_weight, row.score.bits_per_byte)
        for row in rows
        if row.bits_per_weight is not None and row.model != "original"
    ]
    original = next((row.score.bits_per_byte for row in rows if row.model == "original"), None)
    files.write_bytes(path, frontier_picture(points, original, path.suffix[1:].lower()))


def _series(row: Row) -> str:
    (variant,) = parse_variants((row.model,))
    named = {"rtn": "round to nearest", "svd-rtn": "svd", "model": "bank"}.get(
        variant.kind, variant.kind
    )
    return f"{row.run}: {named}" if row.run else named
