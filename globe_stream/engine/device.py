"""The machine at hand: device, threads, and how its products are computed.

Source: docs/design.md, section Devices.
"""

from dataclasses import dataclass

import torch

from globe_stream.engine.capabilities import device_fault, solver_faults
from globe_stream.errors import InputError, option
from globe_stream.io.records import Record
from globe_stream.kernels.coarse import Precision
from globe_stream.kernels.dense_solvers import FALLBACKS

_PROBE = 256
EXACT_ERROR = 2e-6


@dataclass(frozen=True)
class Machine(Record):
    """What was chosen, and why; recorded in the run. `threads` are those of each process."""

    device: str
    device_reason: str
    threads: int
    matmul_precision: str
    matmul_reason: str
    precision: Precision = "float32"
    processes: int = 1


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device for `wanted` (auto, cpu, mps, cuda) and the reason for it.

    Raises InputError when a named device is not there or fails a small comparison with the CPU.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "asked for"
    names = ("cuda", "mps") if wanted == "auto" else (wanted,)
    reasons = []
    for name in names:
        fault = device_fault(name)
        if fault is None:
            return torch.device(name), "asked for" if wanted != "auto" else "first that works"
        reasons.append(f"{name} {fault}")
    if wanted != "auto":
        raise InputError(
            f"{option('device')} {wanted}: {reasons[0]}. Use {option('device')} cpu or auto"
        )
    return torch.device("cpu"), ", ".join(reasons)


def prepare(
    device: torch.device,
    reason: str,
    precision: Precision | None,
    recorded: Machine | None,
    processes: int = 1,
) -> Machine:
    """Set how float32 products are computed, and settle how coarse the others may be.

    `precision` None means what the run began with (`recorded`), float32 for a new one. Nothing here
    depends on a clock: the same machine always computes in the same way. Raises InputError for
    tf32 on a device that has none.
    """
    if device.type != "cpu":
        FALLBACKS.leave_to_cpu(device, solver_faults(device))
    setting, why = float32_setting(device)
    torch.set_float32_matmul_precision(setting)
    chosen = precision or (recorded.precision if recorded else "float32")
    if chosen == "tf32" and device.type != "cuda":
        raise InputError(
            f"{option('precision')} tf32: {device.type} has no TensorFloat-32. "
            f"Use {option('precision')} float32 or bf16"
        )
    threads = torch.get_num_threads()
    return Machine(device.type, reason, threads, setting, why, chosen, processes)


def float32_setting(device: torch.device) -> tuple[str, str]:
    """Torch's setting for float32 products, the quickest that has float32's error, and why.

    On a CPU "medium" lets oneDNN multiply, which is up to twice as fast where it has AVX-512 and
    the same elsewhere; on CPUs with bfloat16 units it rounds to bfloat16, and is not taken.
    """
    if device.type != "cpu":
        return "highest", "TensorFloat-32 is too coarse for Gram matrices"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = product_error()
    torch.set_float32_matmul_precision(before)
    setting = "medium" if error <= EXACT_ERROR else "highest"
    return setting, f"medium has a relative error of {error:.1e}"


def product_error() -> float:
    """Relative error of a float32 product on the CPU as it is now set."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _PROBE, _PROBE, generator=generator)
    return _relative_error(left @ right, left.double() @ right.double())


def _relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())
