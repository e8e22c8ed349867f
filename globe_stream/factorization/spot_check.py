"""One product of a device, now and then, against float64 on the CPU.

Start-up tries small problems; a device may still go wrong at real sizes or after hours. Which
experts are looked at follows from their positions alone, so a continued run looks at the same ones.
Source: docs/design.md, section Devices.
"""

from collections.abc import Sequence

from torch import Tensor

from globe_stream.errors import GlobeError, option
from globe_stream.factorization.adapters import AdapterFit

EVERY = 256
"""Experts from one that is looked at to the next."""
TOLERANCE = 1e-4


def check_products(positions: Sequence[int], weights: Tensor, fit: AdapterFit) -> None:
    """GlobeError where a row of W H^T or H H^T of an expert at one of `positions` is wrong.

    `weights` (b, p, d) and `fit` are those experts'. Nothing is checked on the CPU.
    """
    if weights.device.type == "cpu":
        return
    for k, position in enumerate(positions):
        if position % EVERY:
            continue
        hidden = fit.hidden[k].cpu().double()
        for left, found in (
            (weights[k, 0], fit.projected[k, 0]),
            (hidden[0], fit.hidden_gram[k, 0]),
        ):
            row = left.cpu().double()
            error = float((found.cpu().double() - hidden @ row).norm())
            if not error <= TOLERANCE * float(row.norm() * hidden.norm()):
                raise GlobeError(
                    f"{weights.device.type}: a product of expert {position} of this group is wrong "
                    f"by {error:.1e}. Its results cannot be relied on: start over with "
                    f"{option('device')} cpu and {option('fresh')}"
                )
