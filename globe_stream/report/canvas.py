"""Figures as bare as the page around them, and their PNG files."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

FAMILY_COLOURS = {"up": "#3d7fc9", "gate": "#d9682b"}
STYLES = ("-", "--", ":", "-.")
_DPI = 160
WIDTH = 5.2
"""Of a figure in inches: what stands in it is then large enough on a phone too."""


def figure_of(
    width: float, height: float, rows: int = 1, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its panels, one above the other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 1, squeeze=False, **shared)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure, panels


def whole_ticks(axis: Axis) -> None:
    """Ticks of `axis` at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def png_of(figure: Figure, legend: Axes | None = None) -> bytes:
    """The PNG file of `figure`, with a legend in the panel `legend`."""
    if legend is not None and legend.get_legend_handles_labels()[0]:
        legend.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
