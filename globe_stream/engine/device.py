"""The machine at hand: device, threads and the GEMM precision that is fast and still exact.

Source: docs/design.md, section Devices.
"""

import time
from dataclasses import dataclass

import torch

from globe_stream.errors import InputError, option
from globe_stream.io.records import Record

_PROBE = 768
_CANARY_TILE = 16_384
_EXACT_ERROR = 2e-6


@dataclass(frozen=True)
class Machine(Record):
    """What was chosen, and why; recorded in the run."""

    device: str
    device_reason: str
    threads: int
    matmul_precision: str
    matmul_reason: str


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device for `wanted` (auto, cpu, mps, cuda) and the reason for it.

    Raises InputError when a named device is not there or fails a small comparison with the CPU.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "asked for"
    names = ("cuda", "mps") if wanted == "auto" else (wanted,)
    reasons = []
    for name in names:
        fault = _fault(name)
        if fault is None:
            return torch.device(name), "asked for" if wanted != "auto" else "first that works"
        reasons.append(f"{name} {fault}")
    if wanted != "auto":
        raise InputError(
            f"{option('device')} {wanted}: {reasons[0]}. Use {option('device')} cpu or auto"
        )
    return torch.device("cpu"), ", ".join(reasons)


def prepare(device: torch.device, reason: str, recorded: Machine | None) -> Machine:
    """Set the GEMM precision: the `recorded` choice of an earlier start, or a measured one."""
    if recorded and recorded.device == device.type:
        precision, why = recorded.matmul_precision, recorded.matmul_reason
    else:
        precision, why = _choose_precision(device)
    torch.set_float32_matmul_precision(precision)
    return Machine(device.type, reason, torch.get_num_threads(), precision, why)


def _fault(name: str) -> str | None:
    """Why device `name` cannot be used, or None."""
    backend = torch.cuda if name == "cuda" else torch.backends.mps
    if not backend.is_available():
        return "is not available"
    return _canary(torch.device(name))


def _canary(device: torch.device) -> str | None:
    """Compare a long-reduction Gram matrix and a Cholesky factor with the CPU in float64."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(32, 40_000, generator=generator)
    exact = block.double() @ block.double().T
    there = block.to(device)
    gram = torch.zeros(32, 32, device=device)
    for start in range(0, block.shape[1], _CANARY_TILE):
        part = there[:, start : start + _CANARY_TILE]
        gram += part @ part.T
    if _relative_error(gram, exact) > 1e-5:
        return "computes a wrong Gram matrix"
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info) or _relative_error(factor @ factor.mT, exact) > 1e-4:
        return "computes a wrong Cholesky factor"
    return None


def _choose_precision(device: torch.device) -> tuple[str, str]:
    """The fastest float32 GEMM setting among those with float32 error."""
    if device.type != "cpu":
        return "highest", "TensorFloat-32 is too coarse for Gram matrices"
    seconds, errors = {}, {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        seconds[precision], errors[precision] = _time_gemm()
    rates = {name: 2 * _PROBE**3 / value / 1e9 for name, value in seconds.items()}
    told = ", ".join(f"{name} {rates[name]:.0f} GFLOP/s error {errors[name]:.1e}" for name in rates)
    exact = errors["medium"] <= _EXACT_ERROR
    faster = seconds["medium"] < 0.9 * seconds["highest"]
    return ("medium" if exact and faster else "highest"), told


def _time_gemm() -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_PROBE, _PROBE, generator=generator)
    right = torch.randn(_PROBE, _PROBE, generator=generator)
    product = left @ right
    best = min(_timed(left, right) for _ in range(5))
    return best, _relative_error(product, left.double() @ right.double())


def _timed(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - start


def _relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())
