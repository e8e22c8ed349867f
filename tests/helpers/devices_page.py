"""docs/devices.md: where each operation of seeding and training runs, as a test found it.

python tests/helpers/devices_page.py
"""

import io
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import support
from dispatch_table import kernel
from strict_device import strict

from globe_stream.cli.main import run
from globe_stream.engine.capabilities import SOLVERS

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
COURSES = (
    ((), ()),
    (("--method", "svd"), ("--targets", "pinv", "--activation", "tanh", "--coherence", "0.1")),
    (("--proxies", "left_gram", "--method", "rpca"), ("--target-support", "3")),
    (("--proxies", "rows"), ("--warmup-epochs", "1", "--blend-epochs", "2")),
)
"""Options of seed and train that together go through every kernel."""
_SEEN_BY = {
    "cholesky": "linalg_cholesky_ex",
    "cholesky_solve": "_cholesky_solve_helper",
    "inverse": "linalg_inv_ex",
    "solve": "_linalg_solve_ex",
    "pinv": "linalg_pinv.atol_rtol_tensor",
    "eigh": "_linalg_eigh",
    "svd": "_linalg_svd",
}
_INTRODUCTION = """# Operations by device

Written by `python tests/helpers/devices_page.py`, compared by a test. Seeding and training were run
on devices that are pretended (tests/helpers/strict_device.py), and every operation that reached one
is listed. Whether a device has a kernel is what torch's own table says (torch {torch}).

## What seeding and training run on a device

| operation | mps | cuda |
|---|---|---|
"""
_SOLVERS = """
Codes (non-negative least squares) are float64: on the CPU for mps, on the device for cuda.

## Dense solvers

Probed at start-up; what is missing or wrong is left to the CPU and counted as
`device/fallbacks/NAME`. Inverses of side m, r and d, eigenvectors and singular values are float64
on the CPU on every device.

| solver | kernel on mps | kernel on cuda |
|---|---|---|
"""


def operations(kind: str, folder: Path) -> set[str]:
    """Names of the operations that ran on the pretended device of `kind`."""
    model = folder / "model"
    if not model.exists():
        support.write_checkpoint(model, layers=1, experts=8, p=8, d=12)
    found: set[str] = set()
    for number, (seeding, training) in enumerate(COURSES):
        path = str(folder / f"{kind}-{number}")
        given = ["--run", path, "--bases", "4", "--families", "up", "--device", kind]
        told = io.StringIO()
        with strict(kind) as device, redirect_stdout(told), redirect_stderr(told):
            codes = run(["seed", str(model), *given, *seeding])
            codes += run(["train", path, "--epochs", "3", "--device", kind, *training])
        if codes:
            raise AssertionError(told.getvalue())
        found |= set(device.operations)
    return found


def operations_by_kind(folder: Path) -> dict[str, set[str]]:
    """`operations` of every kind of device, from runs in `folder`."""
    return {kind: operations(kind, folder) for kind in ("mps", "cuda")}


def page(ran: dict[str, set[str]]) -> str:
    """The page of what `operations_by_kind` found."""
    import torch

    lines = [
        f"| `{name}` | {' | '.join('yes' if name in ran[kind] else '' for kind in ran)} |"
        for name in sorted(set.union(*ran.values()))
    ]
    solvers = [
        f"| {name} | {' | '.join(kernel(_SEEN_BY[name], kind) or 'none' for kind in ran)} |"
        for name in SOLVERS
    ]
    version = torch.__version__.split("+")[0]
    head = _INTRODUCTION.replace("{torch}", version)
    return head + "\n".join(lines) + "\n" + _SOLVERS + "\n".join(solvers) + "\n"


if __name__ == "__main__":
    support.make_quick()
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(operations_by_kind(Path(scratch))), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
