"""The picture of the frontier: bits per byte against bits a weight, of every way of storing."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DPI = 130
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class FrontierPoint:
    """One way of storing the experts; those of a `series` are joined by a line."""

    series: str
    bits_per_weight: float
    bits_per_byte: float


def frontier_picture(points: Sequence[FrontierPoint], original: float | None, kind: str) -> bytes:
    """The bytes of a file of `kind` (png or svg) of all points.

    `original` is the score in bits per byte of the original, a horizontal line.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    for number, series in enumerate(dict.fromkeys(point.series for point in points)):
        line = sorted(
            (point.bits_per_weight, point.bits_per_byte)
            for point in points
            if point.series == series
        )
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(*zip(*line, strict=True), marker=marker, markersize=4, label=series)
    if original is not None:
        axes.axhline(original, color="black", linewidth=0.8, linestyle="--", label="original")
    axes.set(xlabel="bits a weight, as stored", ylabel="bits per byte", xscale="log")
    ticks = [bits for bits in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32) if _within(bits, points)]
    axes.set_xticks(ticks, [f"{bits:g}" for bits in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


def _within(bits: float, points: Sequence[FrontierPoint]) -> bool:
    sizes = [point.bits_per_weight for point in points]
    return bool(sizes) and 0.8 * min(sizes) <= bits <= 1.25 * max(sizes)
