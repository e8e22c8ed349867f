"""The pictures of a report, each as the bytes of a PNG file."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from globe_stream.report.data import Array, StageMemory, UnitData

_COLOURS = {"up": "#1f5fa8", "gate": "#c4541a"}
_STYLES = ("-", "--", ":", "-.")
_DPI = 130


def error_curve(units: Sequence[UnitData]) -> bytes:
    """relF by epoch, and the equal-parameter SVD as a horizontal line."""
    figure, axes = _figure(6.4, 3.6)
    for number, unit in enumerate(units):
        epochs, errors = zip(*unit.curve, strict=True) if unit.curve else ((), ())
        colour, style = _look(unit, number, units)
        axes.plot(
            epochs,
            errors,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=2.5,
            label=unit.key,
        )
        if unit.svd_error is not None and len(units) <= 2:
            axes.axhline(
                unit.svd_error,
                color=colour,
                linewidth=0.8,
                alpha=0.6,
                linestyle="--",
                label=f"{unit.key}: SVD of equal size",
            )
    axes.set(xlabel="epoch (0 is the seed)", ylabel="relative Frobenius error", ylim=(0, None))
    return _png(figure, legend=axes if len(units) <= 8 else None)


def error_map(family: str, units: Sequence[UnitData]) -> bytes:
    """relF of every expert: layers down, experts across."""
    members = np.concatenate([unit.members for unit in units])
    errors = np.concatenate([unit.errors for unit in units])
    layers = np.unique(members[:, 0])
    routed = int(members[members[:, 2] == 0, 1].max(initial=-1)) + 1
    columns = np.where(members[:, 2] == 1, routed + members[:, 1], members[:, 1])
    grid = np.full((len(layers), int(columns.max()) + 1), np.nan)
    grid[np.searchsorted(layers, members[:, 0]), columns] = errors
    figure, axes = _figure(6.4, min(6.0, 1.6 + 0.16 * len(layers)))
    axes.grid(visible=False)
    image = axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="relative error")
    shown = range(0, len(layers), max(1, len(layers) // 12))
    axes.set_yticks(list(shown), [str(layers[k]) for k in shown])
    axes.set(xlabel="expert", ylabel="layer", title=family)
    return _png(figure)


def supports(units: Sequence[UnitData]) -> bytes:
    """How many atoms the experts use."""
    figure, axes = _figure(6.4, 3.0)
    highest = max(int(unit.supports.max(initial=1)) for unit in units)
    bins = np.arange(0, highest + 2) - 0.5 if highest < 80 else np.linspace(0, highest, 60)
    for family, counts in _by_family(units, "supports").items():
        axes.hist(counts, bins=list(bins), color=_COLOURS.get(family), alpha=0.55, label=family)
    axes.set(xlabel="atoms in an expert's code", ylabel="experts")
    return _png(figure, legend=axes)


def popularity(units: Sequence[UnitData]) -> bytes:
    """How many experts use each atom, most used first."""
    figure, axes = _figure(6.4, 3.0)
    for number, unit in enumerate(units):
        colour, style = _look(unit, number, units)
        ordered = np.sort(unit.popularity)[::-1]
        axes.plot(
            np.arange(1, len(ordered) + 1), ordered, color=colour, linestyle=style, label=unit.key
        )
    axes.set(xlabel="atoms, most used first", ylabel="experts that use it", ylim=(0, None))
    return _png(figure, legend=axes if len(units) <= 8 else None)


def spectrum(units: Sequence[UnitData]) -> bytes:
    """Eigenvalues of the proxies' Gram matrix, and where the bank's size cuts them."""
    figure, axes = _figure(6.4, 3.2)
    for number, unit in enumerate(units):
        if unit.eigenvalues is None:
            continue
        colour, style = _look(unit, number, units)
        values = np.clip(np.sort(unit.eigenvalues)[::-1], 1e-12, None)
        axes.semilogy(
            np.arange(1, len(values) + 1), values, color=colour, linestyle=style, label=unit.key
        )
        axes.axvline(len(unit.popularity), color=colour, linewidth=0.8, alpha=0.6)
    axes.set(xlabel="index (the line marks the number of atoms)", ylabel="eigenvalue")
    return _png(figure, legend=axes if len(units) <= 8 else None)


def memory(stages: Sequence[StageMemory]) -> bytes:
    """Price beside measured peak of every stage."""
    figure, axes = _figure(6.4, 0.8 + 0.32 * len(stages))
    places = np.arange(len(stages))
    unit = 2**20
    axes.barh(
        places - 0.19,
        [one.price / unit for one in stages],
        height=0.36,
        color="#9aa7b5",
        label="price",
    )
    axes.barh(
        places + 0.19,
        [one.peak / unit for one in stages],
        height=0.36,
        color="#1f5fa8",
        label="peak",
    )
    axes.set_yticks(list(places), [one.stage for one in stages])
    axes.invert_yaxis()
    axes.set(xlabel="MiB, the program itself included")
    return _png(figure, legend=axes)


def _by_family(units: Sequence[UnitData], name: str) -> dict[str, Array]:
    families = dict.fromkeys(unit.family for unit in units)
    return {
        family: np.concatenate([getattr(unit, name) for unit in units if unit.family == family])
        for family in families
    }


def _look(unit: UnitData, number: int, units: Sequence[UnitData]) -> tuple[str | None, str]:
    """Families by colour, units of a family by line style."""
    same = [other.key for other in units[:number] if other.family == unit.family]
    return _COLOURS.get(unit.family), _STYLES[len(same) % len(_STYLES)]


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _png(figure, legend=None) -> bytes:  # type: ignore[no-untyped-def]
    if legend is not None:
        legend.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
