"""Pictures over epochs: the error and what steered it, coherence, rates, and memory over time."""

from collections.abc import Callable, Sequence
from itertools import cycle

from matplotlib.ticker import LogFormatter

from globe_stream.report.canvas import FAMILY_COLOURS, STYLES, WIDTH, figure_of, png_of, whole_ticks
from globe_stream.report.data import GroupData
from globe_stream.report.history import EpochPoint, MachineRates, MemoryPoint, StageRate

_PRICE, _BUDGET, _PEAK = "#c4541a", "#a3260f", "#3d7fc9"

Value = Callable[[EpochPoint], float | None]


def error_over_costs(named: Sequence[tuple[str, GroupData]]) -> bytes:
    """relF over passes, seconds and operations; `named` are groups with what to call them."""
    figure, panels = figure_of(WIDTH, 7.2, rows=3)
    most = max((point.operations for _, group in named for point in group.history), default=0.0)
    unit, scale = ("TFLOP", 1e12) if most >= 1e12 else ("GFLOP", 1e9)
    costs: list[tuple[str, Value]] = [
        ("passes over the experts, seeding included", lambda point: point.passes),
        ("seconds", lambda point: point.seconds),
        (f"{unit} of the epochs", lambda point: point.operations / scale),
    ]
    for axes, (label, cost) in zip(panels, costs, strict=True):
        for (name, group), colour, style in _looks(named):
            places = [(cost(point), point.error) for point in group.history]
            axes.plot(*_columns(places), color=colour, linestyle=style, marker=".", label=name)
        axes.set(xlabel=label, ylabel="relF")
    return png_of(figure, legend=panels[0])


def steering(named: Sequence[tuple[str, GroupData]]) -> bytes:
    """lambda, beta, temperature and support by epoch; rejected steps as crosses on lambda."""
    figure, panels = figure_of(WIDTH, 7.6, rows=4, sharex=True)
    values: list[tuple[str, Value]] = [
        ("lambda", lambda point: point.activation_lambda),
        ("beta", lambda point: point.beta),
        ("temperature T", lambda point: point.temperature),
        ("median support", lambda point: point.median_support),
    ]
    for axes, (label, value) in zip(panels, values, strict=True):
        for (name, group), colour, style in _looks(named):
            places = [(point.epoch, value(point)) for point in group.history]
            axes.plot(*_columns(places), color=colour, linestyle=style, label=name)
        axes.set(ylabel=label)
    for (_, group), colour, _style in _looks(named):
        crosses = [(p.epoch, p.activation_lambda) for p in group.history if p.rejected]
        panels[0].plot(*_columns(crosses), "x", color=colour, label=None)
        targets = [(p.epoch, p.target_support) for p in group.history]
        panels[3].plot(*_columns(targets), color=colour, linewidth=0.8, alpha=0.5)
    panels[1].set_yticks((0, 0.5, 1))
    panels[2].set_yscale("log")
    for formatted in (panels[2].yaxis.set_major_formatter, panels[2].yaxis.set_minor_formatter):
        formatted(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    panels[3].set(xlabel="epoch")
    whole_ticks(panels[3].xaxis)
    return png_of(figure, legend=panels[0])


def coherence(named: Sequence[tuple[str, GroupData]]) -> bytes:
    """The largest cosine between two atoms, by epoch."""
    figure, (axes,) = figure_of(WIDTH, 2.8)
    for (name, group), colour, style in _looks(named):
        places = [(point.epoch, point.coherence) for point in group.history]
        axes.plot(*_columns(places), color=colour, linestyle=style, label=name)
    axes.set(xlabel="epoch", ylabel="largest cosine of two atoms", ylim=(0, 1.02))
    whole_ticks(axes.xaxis)
    return png_of(figure, legend=axes)


def rates(named: Sequence[tuple[str, GroupData]]) -> bytes:
    """Operations and bytes a second of every epoch, and what the machine reaches."""
    figure, panels = figure_of(WIDTH, 4.6, rows=2, sharex=True)
    for (_, group), colour, _style in _looks(named):
        limits: list[Value] = [
            lambda point: _scaled(point.machine.operations_per_second, 1e9),
            lambda point: _scaled(point.machine.bytes_per_second, 2**20),
        ]
        for axes, limit in zip(panels, limits, strict=True):
            places = [(point.epoch, limit(point)) for point in group.history]
            axes.plot(*_columns(places), ":", color=colour, linewidth=1.2)
    for (name, group), colour, style in _looks(named):
        arithmetic = [(p.epoch, _scaled(p.operations_per_second, 1e9)) for p in group.history]
        reading = [(p.epoch, _scaled(p.bytes_per_second, 2**20)) for p in group.history]
        for axes, places in zip(panels, (arithmetic, reading), strict=True):
            axes.plot(*_columns(places), color=colour, linestyle=style, label=name)
    panels[0].set(ylabel="GFLOP/s", ylim=(0, None))
    panels[1].set(xlabel="epoch", ylabel="MiB/s read", ylim=(0, None))
    whole_ticks(panels[1].xaxis)
    return png_of(figure, legend=panels[0])


def rates_by_stage(stages: Sequence[StageRate], machine: MachineRates) -> bytes:
    """Operations and bytes a second of every kind of step, and what the machine reaches."""
    figure, panels = figure_of(WIDTH, 1.6 + 0.46 * len(stages), rows=2)
    places = range(len(stages))
    values = [
        ("GFLOP/s", 1e9, [one.operations_per_second for one in stages],
         machine.operations_per_second, "a float32 product on this machine"),
        ("MiB/s read", 2**20, [one.bytes_per_second for one in stages],
         machine.bytes_per_second, "reading alone on this machine"),
    ]  # fmt: skip
    for axes, (label, unit, reached, limit, meaning) in zip(panels, values, strict=True):
        axes.barh(list(places), [(one or 0.0) / unit for one in reached], height=0.6, color=_PEAK)
        if limit is not None:
            axes.axvline(limit / unit, color=_PRICE, linestyle=":", linewidth=1.4, label=meaning)
            axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
        axes.set_yticks(list(places), [one.stage for one in stages])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=label)
    return png_of(figure)


def memory_over_time(points: Sequence[MemoryPoint], budget: int) -> bytes:
    """Peaks and prices as they were logged, the resident memory between, the budget above."""
    figure, (axes,) = figure_of(WIDTH, 3.0)
    mebibyte = 2**20
    values: list[tuple[str, str, Callable[[MemoryPoint], int | None]]] = [
        ("priced", _PRICE, lambda point: point.price),
        ("peak so far in the stage", _PEAK, lambda point: point.peak),
        ("resident", "#6b7684", lambda point: point.rss),
    ]
    for label, colour, value in values:
        places = [(point.seconds, _scaled(value(point), mebibyte)) for point in points]
        axes.plot(*_columns(places), ".", color=colour, markersize=4, label=label)
    if budget:
        axes.axhline(budget / mebibyte, color=_BUDGET, linewidth=1, linestyle="--", label="budget")
    axes.set(xlabel="seconds since the first stage", ylabel="MiB", ylim=(0, None))
    return png_of(figure, legend=axes)


def _looks(
    named: Sequence[tuple[str, GroupData]],
) -> list[tuple[tuple[str, GroupData], str | None, str]]:
    """Each with a colour and a line style: families by colour in one run, runs by both."""
    runs = {name for name, _ in named}
    families = [group.family for _, group in named]
    if len(runs) == len(set(families)) == len(named):
        return [(one, FAMILY_COLOURS.get(one[1].family), "-") for one in named]
    palette = cycle(f"C{k}" for k in range(10))
    styles = cycle(STYLES)
    chosen: dict[str, str] = {}
    by_family = {family: next(styles) for family in dict.fromkeys(families)}
    for name, _ in named:
        chosen.setdefault(name, next(palette))
    return [(one, chosen[one[0]], by_family[one[1].family]) for one in named]


def _columns(
    places: Sequence[tuple[float | None, float | None]],
) -> tuple[list[float], list[float]]:
    """x and y of the places that have both."""
    known = [(x, y) for x, y in places if x is not None and y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
