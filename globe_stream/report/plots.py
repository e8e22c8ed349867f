"""The pictures of a report, each as the bytes of a PNG file."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from globe_stream.report.canvas import FAMILY_COLOURS, STYLES, WIDTH, figure_of, png_of, whole_ticks
from globe_stream.report.data import Array, GroupData, StageMemory
from globe_stream.report.pooling import MANY_GROUPS, pool_curves, spread


def error_curve(groups: Sequence[GroupData]) -> bytes:
    """relF by epoch, and the equal-parameter SVD as a horizontal line.

    Many groups are one line a family, with a band from the lowest to the highest.
    """
    figure, (axes,) = figure_of(WIDTH, 3.6)
    if len(groups) > MANY_GROUPS:
        _pooled_curves(axes, groups)
    else:
        _group_curves(axes, groups)
    axes.set(xlabel="epoch (0 is the seed)", ylabel="relative Frobenius error", ylim=(0, None))
    whole_ticks(axes.xaxis)
    return png_of(figure, legend=axes)


def _group_curves(axes: Axes, groups: Sequence[GroupData]) -> None:
    for number, group in enumerate(groups):
        epochs, errors = zip(*group.curve, strict=True) if group.curve else ((), ())
        colour, style = _look(group, number, groups)
        axes.plot(
            epochs,
            errors,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=2.5,
            label=group.key,
        )
        if group.svd_error is not None and len(groups) <= 2:
            _svd_line(axes, group.svd_error, colour, group.key)


def _pooled_curves(axes: Axes, groups: Sequence[GroupData]) -> None:
    for one in pool_curves(groups):
        colour = FAMILY_COLOURS.get(one.family)
        count = sum(group.family == one.family for group in groups)
        label = f"{one.family}, all {count} banks (band: lowest to highest)"
        axes.fill_between(
            one.epochs, one.lowest, one.highest, color=colour, alpha=0.18, linewidth=0
        )
        axes.plot(one.epochs, one.pooled, color=colour, marker="o", markersize=2.5, label=label)
        if one.svd_error is not None:
            _svd_line(axes, one.svd_error, colour, one.family)


def _svd_line(axes: Axes, error: float, colour: str | None, name: str) -> None:
    axes.axhline(
        error,
        color=colour,
        linewidth=0.8,
        alpha=0.6,
        linestyle="--",
        label=f"{name}: SVD of equal size",
    )


def error_map(family: str, groups: Sequence[GroupData]) -> bytes:
    """relF of every expert: layers down, experts across."""
    members = np.concatenate([group.members for group in groups])
    errors = np.concatenate([group.errors for group in groups])
    layers = np.unique(members[:, 0])
    routed = int(members[members[:, 2] == 0, 1].max(initial=-1)) + 1
    columns = np.where(members[:, 2] == 1, routed + members[:, 1], members[:, 1])
    grid = np.full((len(layers), int(columns.max()) + 1), np.nan)
    grid[np.searchsorted(layers, members[:, 0]), columns] = errors
    figure, (axes,) = figure_of(WIDTH, min(6.0, 1.6 + 0.16 * len(layers)))
    axes.grid(visible=False)
    image = axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="relative error")
    shown = range(0, len(layers), max(1, len(layers) // 12))
    axes.set_yticks(list(shown), [str(layers[k]) for k in shown])
    axes.set(xlabel="expert", ylabel="layer", title=family)
    whole_ticks(axes.xaxis)
    return png_of(figure)


def supports(groups: Sequence[GroupData]) -> bytes:
    """How many atoms the experts use."""
    figure, (axes,) = figure_of(WIDTH, 3.0)
    highest = max(int(group.supports.max(initial=1)) for group in groups)
    bins = np.arange(0, highest + 2) - 0.5 if highest < 80 else np.linspace(0, highest, 60)
    for family, counts in _by_family(groups, "supports").items():
        axes.hist(
            counts, bins=list(bins), color=FAMILY_COLOURS.get(family), alpha=0.55, label=family
        )
    axes.set(xlabel="atoms in an expert's code", ylabel="experts")
    whole_ticks(axes.xaxis)
    whole_ticks(axes.yaxis)
    return png_of(figure, legend=axes)


def popularity(groups: Sequence[GroupData]) -> bytes:
    """How many experts use each atom, most used first; many groups as a band a family."""
    figure, (axes,) = figure_of(WIDTH, 3.0)
    _ranked(axes, groups, [np.sort(group.popularity)[::-1] for group in groups])
    axes.set(xlabel="atoms, most used first", ylabel="experts that use it", ylim=(0, None))
    whole_ticks(axes.yaxis)
    return png_of(figure, legend=axes)


def spectrum(groups: Sequence[GroupData]) -> bytes:
    """Eigenvalues of the proxies' Gram matrix, and where the bank's size cuts them."""
    figure, (axes,) = figure_of(WIDTH, 3.2)
    kept = [group for group in groups if group.eigenvalues is not None]
    _ranked(axes, kept, [np.clip(_eigenvalues(group), 1e-12, None) for group in kept])
    for family, atoms in dict.fromkeys((group.family, len(group.popularity)) for group in kept):
        axes.axvline(atoms, color=FAMILY_COLOURS.get(family), linewidth=0.8, alpha=0.6)
    axes.set(xlabel="index (the line marks the number of atoms)", ylabel="eigenvalue")
    axes.set_yscale("log")
    return png_of(figure, legend=axes)


def _eigenvalues(group: GroupData) -> Array:
    assert group.eigenvalues is not None
    return group.eigenvalues


def _ranked(axes: Axes, groups: Sequence[GroupData], rows: Sequence[Array]) -> None:
    """One line a group over 1, 2, ...; of many groups the median of a family, and a band."""
    whole_ticks(axes.xaxis)
    if len(groups) <= MANY_GROUPS:
        for number, (group, row) in enumerate(zip(groups, rows, strict=True)):
            colour, style = _look(group, number, groups)
            places = np.arange(1, len(row) + 1)
            axes.plot(places, row, color=colour, linestyle=style, label=group.key)
        return
    for family in dict.fromkeys(group.family for group in groups):
        own = [row for group, row in zip(groups, rows, strict=True) if group.family == family]
        lowest, median, highest = spread(own)
        colour, places = FAMILY_COLOURS.get(family), np.arange(1, len(median) + 1)
        axes.fill_between(places, lowest, highest, color=colour, alpha=0.18, linewidth=0)
        label = f"{family}, median of {len(own)} banks (band: lowest to highest)"
        axes.plot(places, median, color=colour, label=label)


def memory(stages: Sequence[StageMemory]) -> bytes:
    """Price beside measured peak of every stage."""
    figure, (axes,) = figure_of(WIDTH, 0.8 + 0.32 * len(stages))
    places = np.arange(len(stages))
    mebibyte = 2**20
    axes.barh(
        places - 0.19,
        [one.estimate_bytes / mebibyte for one in stages],
        height=0.36,
        color="#9aa7b5",
        label="price",
    )
    axes.barh(
        places + 0.19,
        [one.peak / mebibyte for one in stages],
        height=0.36,
        color="#3d7fc9",
        label="peak",
    )
    axes.set_yticks(list(places), [one.stage for one in stages])
    axes.invert_yaxis()
    axes.set(xlabel="MiB, the program itself included")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return png_of(figure)


def _by_family(groups: Sequence[GroupData], name: str) -> dict[str, Array]:
    families = dict.fromkeys(group.family for group in groups)
    return {
        family: np.concatenate([getattr(group, name) for group in groups if group.family == family])
        for family in families
    }


def _look(group: GroupData, number: int, groups: Sequence[GroupData]) -> tuple[str | None, str]:
    """Families by colour, groups of a family by line style."""
    same = [other.key for other in groups[:number] if other.family == group.family]
    return FAMILY_COLOURS.get(group.family), STYLES[len(same) % len(STYLES)]
