"""The picture of a sweep: what each point keeps and what it loses, beside the truncated SVD."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MARKERS = "os^Dv<>P*X"
_GREY = "#6b7684"
_DPI = 130


@dataclass(frozen=True)
class ParetoPoint:
    """One point: the parameters it keeps, its error, its score and the SVD's of equal size."""

    series: str
    parameters_kept: float
    relative_frobenius_error: float
    bits_per_byte: float | None = None
    svd_bits_per_byte: float | None = None


def pareto_pictures(
    points: Sequence[ParetoPoint],
    svd_curve: Sequence[tuple[float, float]],
    original_bits_per_byte: float | None,
) -> dict[str, bytes]:
    """The picture as files of the kinds "svg" and "png".

    Error over parameters kept, points of one series alike, the points that no other beats joined,
    beside the truncated SVD of every size (`svd_curve`: parameters kept, relF); with scores a
    second panel of bits per byte. The same points give the same bytes.
    """
    scored = [point for point in points if point.bits_per_byte is not None]
    figure = Figure(figsize=(6.4 if not scored else 11.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    _errors(panels[0], points, svd_curve)
    if scored:
        _bits(panels[1], scored, original_bits_per_byte)
    return {kind: _file(figure, kind) for kind in ("svg", "png")}


def front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of `places` (size, error) that none of at most their size has a smaller error than."""
    kept: list[tuple[float, float]] = []
    for size, error in sorted(places):
        if not kept or error < kept[-1][1]:
            kept.append((size, error))
    return kept


def _errors(
    axes: Axes, points: Sequence[ParetoPoint], curve: Sequence[tuple[float, float]]
) -> None:
    sizes = [point.parameters_kept for point in points]
    margin = max(0.1, 0.5 * (max(sizes) - min(sizes)))
    near = [place for place in curve if min(sizes) - margin <= place[0] <= max(sizes) + margin]
    _svd(axes, near, "truncated SVD of equal size")
    _scatter(axes, [(p.series, p.parameters_kept, p.relative_frobenius_error) for p in points])
    axes.set(ylabel="relative Frobenius error")


def _svd(axes: Axes, places: Sequence[tuple[float, float]], label: str, marker: str = "") -> None:
    axes.plot(
        [100 * kept for kept, _ in places],
        [value for _, value in places],
        color=_GREY,
        linestyle="--",
        marker=marker,
        label=label,
    )


def _bits(axes: Axes, points: Sequence[ParetoPoint], original: float | None) -> None:
    places = [
        (point.series, point.parameters_kept, point.bits_per_byte)
        for point in points
        if point.bits_per_byte is not None
    ]
    svd = {
        (point.parameters_kept, point.svd_bits_per_byte)
        for point in points
        if point.svd_bits_per_byte is not None
    }
    _svd(axes, sorted(svd), "truncated SVD of equal size", ".")
    if original is not None:
        axes.axhline(original, color=_GREY, linewidth=0.9, label="original")
    _scatter(axes, places)
    axes.set(ylabel="bits per byte")


def _scatter(axes: Axes, places: Sequence[tuple[str, float, float]]) -> None:
    best = front([(kept, error) for _, kept, error in places])
    axes.plot(
        [100 * kept for kept, _ in best],
        [error for _, error in best],
        color=_GREY,
        linewidth=0.8,
        zorder=1,
        label="best of its size",
    )
    for series, marker in zip(dict.fromkeys(name for name, *_ in places), cycle(_MARKERS)):
        own = [(kept, error) for name, kept, error in places if name == series]
        axes.scatter(
            [100 * kept for kept, _ in own],
            [error for _, error in own],
            s=26,
            marker=marker,
            zorder=2,
            label=series,
        )
    axes.set(xlabel="expert parameters kept, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _file(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    none = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "globe-stream", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=none)
    return buffer.getvalue()
