"""Pictures for light and dark pages: the same drawing in two sets of colours."""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG files for light and dark pages."""

    light: bytes
    dark: bytes


def drawn(plot: Callable[..., bytes], *arguments: object) -> Drawn:
    """What `plot` draws of `arguments`, in both themes."""
    files = []
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context(theme.settings()):
            files.append(plot(*arguments))
    return Drawn(*files)
