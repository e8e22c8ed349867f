"""The lines of the pictures over epochs are the numbers of the history."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

from globe_stream.report import trajectories
from globe_stream.report.history import EpochPoint, MachineRates, MemoryPoint, StageRate
from globe_stream.report.themes import DARK, LIGHT, Drawn

HISTORY = (
    EpochPoint(0, 0.5, 3, 7.0, 0.0, None, None, None, None, None, False, None, None, None),
    EpochPoint(
        1,
        0.4,
        4,
        9.0,
        2e9,
        0.0,
        0.0,
        2.0,
        20.0,
        12.0,
        False,
        0.3,
        2.0**21,
        1e9,
        MachineRates(5e9, 2.0**23),
    ),
    EpochPoint(
        2,
        0.3,
        5,
        12.0,
        4e9,
        0.5,
        1.0,
        1.5,
        14.0,
        12.0,
        True,
        0.4,
        2.0**22,
        2e9,
        MachineRates(5e9, None),
    ),
)
NAMED: Any = [("up", SimpleNamespace(family="up", history=HISTORY))]
Panels = list[list[tuple[list[float], list[float]]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Panels]:
    """What a picture draws, panel by panel: x and y of its lines that are not empty."""
    figures: list[Figure] = []

    def keep(figure: Figure, **_: object) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(trajectories, "png_of", keep)

    def of(plot: Callable[..., bytes], *arguments: object) -> Panels:
        plot(*arguments)
        return [
            [
                (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
                for line in axes.lines
                if len(line.get_xdata())
            ]
            for axes in figures[-1].axes
        ]

    return of


def test_errors_are_drawn_over_passes_seconds_and_operations(lines: Callable[..., Panels]) -> None:
    errors = [0.5, 0.4, 0.3]
    assert lines(trajectories.error_over_costs, NAMED) == [
        [([3, 4, 5], errors)],
        [([7, 9, 12], errors)],
        [([0, 2, 4], errors)],
    ]


def test_what_steers_is_drawn_with_rejected_steps_and_targets(
    lines: Callable[..., Panels],
) -> None:
    assert lines(trajectories.steering, NAMED) == [
        [([1, 2], [0, 0.5]), ([2], [0.5])],
        [([1, 2], [0, 1])],
        [([1, 2], [2, 1.5])],
        [([1, 2], [20, 14]), ([1, 2], [12, 12])],
    ]


def test_coherence_and_rates(lines: Callable[..., Panels]) -> None:
    assert lines(trajectories.coherence, NAMED) == [[([1, 2], [0.3, 0.4])]]
    assert lines(trajectories.rates, NAMED) == [
        [([1, 2], [5, 5]), ([1, 2], [1, 2])],
        [([1], [8]), ([1, 2], [2, 4])],
    ]


def test_stages_are_drawn_beside_what_the_machine_reaches(lines: Callable[..., Panels]) -> None:
    stages = [StageRate("seed/measure", 2e9, 2.0**21), StageRate("epoch", 3e9, None)]
    both = lines(trajectories.rates_by_stage, stages, MachineRates(5e9, 2.0**23))
    assert [panel[0][0] for panel in both] == [[5, 5], [8, 8]]
    assert lines(trajectories.rates_by_stage, stages, MachineRates()) == [[], []]


def test_memory_is_drawn_with_its_price_and_the_budget(lines: Callable[..., Panels]) -> None:
    mebi = 2**20
    points = [MemoryPoint(0, None, 3 * mebi, 4 * mebi), MemoryPoint(5, 2 * mebi, 3 * mebi, None)]
    (panel,) = lines(trajectories.memory_over_time, points, 6 * mebi)
    assert panel[:3] == [([0], [4]), ([0, 5], [3, 3]), ([5], [2])]
    assert panel[3][1] == [6, 6]


def test_each_theme_is_drawn_in_its_own_colours() -> None:
    asked = []

    def paper() -> bytes:
        found: str = matplotlib.rcParams["figure.facecolor"]
        asked.append(found)
        return found.encode()

    seen = Drawn(paper)
    assert seen.light == seen.light == LIGHT.paper.encode()
    assert asked == [LIGHT.paper], "a page that is not looked at is not drawn, nor one twice"
    assert seen.dark == DARK.paper.encode()
    assert matplotlib.rcParams["figure.facecolor"] == "white"
