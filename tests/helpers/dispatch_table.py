"""Which operations a device has kernels for, by the table that the installed torch carries.

The table is `native_functions.yaml` beside torchgen: it lists every aten operation with the devices
that it was written for. An operation without a kernel of its own may be made of others: then they
decide, and `kernel` says of which kind it is.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torchgen

NATIVE, EXPLICIT, IMPLICIT = "native", "explicit", "implicit"
"""A kernel of its own; made of others in one kernel; made of others before it is dispatched."""
_COMPOSITES = {
    "CompositeExplicitAutograd": EXPLICIT,
    "CompositeExplicitAutogradNonFunctional": EXPLICIT,
    "CompositeImplicitAutograd": IMPLICIT,
}


@dataclass
class _Entry:
    """One operation of the table."""

    keys: set[str] = field(default_factory=set)
    delegate: str | None = None


@cache
def entries() -> dict[str, _Entry]:
    """Every operation by its name and overload, such as `mm.out`, or `mm` for the plain one."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    found: dict[str, _Entry] = {}
    entry, in_dispatch = _Entry(), False
    for line in table.read_text().splitlines():
        if match := re.match(r"- func: ([\w.]+)\(", line):
            entry, in_dispatch = _Entry(), False
            found[match[1]] = entry
        elif match := re.match(r"  structured_delegate: ([\w.]+)", line):
            entry.delegate = match[1]
        elif line.startswith("  ufunc_inner_loop:"):
            entry.keys.update(("CPU", "CUDA"))
            in_dispatch = False
        elif match := re.match(r"  autogen: (.*)", line):
            found.update(dict.fromkeys(match[1].split(", "), entry))
        elif match := re.match(r"    ([\w, ]+): \w", line):
            if in_dispatch:
                entry.keys.update(match[1].split(", "))
        elif re.match(r"  \w", line):
            in_dispatch = line.startswith("  dispatch:")
    return found


def kernel(operation: str, device: str) -> str | None:
    """NATIVE, EXPLICIT or IMPLICIT for `operation` on `device` (mps, cuda); None: it cannot run."""
    entry = entries().get(operation)
    if entry is None:
        return None
    if device.upper() in entry.keys:
        return NATIVE
    if entry.delegate is not None:
        return kernel(entry.delegate, device)
    for key, kind in _COMPOSITES.items():
        if key in entry.keys:
            return kind
    return IMPLICIT if not entry.keys else None
