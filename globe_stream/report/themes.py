"""Pictures for light and dark pages: the same drawing in two sets of colours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import matplotlib


@dataclass(frozen=True)
class Theme:
    """Colours of paper, ink and grid."""

    paper: str
    ink: str
    grid: str

    def settings(self) -> dict[str, object]:
        """As matplotlib's settings."""
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        return {
            **dict.fromkeys(inked, self.ink),
            **dict.fromkeys(papered, self.paper),
            "grid.color": self.grid,
        }


LIGHT = Theme(paper="#ffffff", ink="#1d2430", grid="#8a94a3")
DARK = Theme(paper="#14181f", ink="#dfe4ec", grid="#77818f")


class Drawn:
    """A picture as PNG files for light and dark pages, each drawn when it is first asked for."""

    def __init__(self, plot: Callable[..., bytes], *arguments: object) -> None:
        """What `plot` draws of `arguments`."""
        self._plot, self._arguments = plot, arguments

    @cached_property
    def light(self) -> bytes:
        """For a light page."""
        return self._in(LIGHT)

    @cached_property
    def dark(self) -> bytes:
        """For a dark page."""
        return self._in(DARK)

    def _in(self, theme: Theme) -> bytes:
        with matplotlib.rc_context(theme.settings()):
            return self._plot(*self._arguments)
