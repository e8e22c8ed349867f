"""`doctor`: the machine at hand, what runs where on it, its rates, and what a model would take."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from globe_stream import __version__
from globe_stream.commands.estimate import RunEstimate
from globe_stream.commands.plan import plan
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.capabilities import BASIC, SOLVERS, device_fault, solver_faults
from globe_stream.engine.device import choose_device, float32_setting
from globe_stream.engine.rates import product_rate
from globe_stream.io.records import Compact, Record
from globe_stream.memory.device_memory import whole_memory
from globe_stream.memory.operations import Work

WRITTEN = 64 << 20
"""Bytes that are written and read to time the disk."""


@dataclass(frozen=True)
class DeviceReport(Record):
    """Whether a device can be used, and if not, the reason."""

    usable: bool
    reason: str


@dataclass(frozen=True)
class UsableDevice(DeviceReport):
    """Where each operation runs, why (`faults`), and the rate of float32 products a second.

    `memory_bytes` are the device's own, None where it shares the machine's.
    """

    memory_bytes: int | None
    operations: dict[str, str]
    faults: dict[str, str]
    gemm_flops: float
    float32_products: str


@dataclass(frozen=True)
class DiskRates(Record):
    """Bytes a second of writing into a folder and reading from it."""

    folder: str
    write_bytes_per_second: float
    read_bytes_per_second: float


@dataclass(frozen=True)
class RunTime(Record):
    """Seconds of a run as `plan` reckons them, seeding included, and what they are made of."""

    model: str
    epochs: int
    peak_memory_bytes: int
    least_memory_bytes: int
    epoch_flops: float
    computing_seconds: float
    reading_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MachineReport(Compact):
    """The machine, its devices and disk, and what a `run` would take, if a model was named."""

    format: int = 1
    globe_stream: str
    python: str
    torch: str
    system: str
    chip: str
    cores: int | None
    threads: int
    memory_bytes: int
    memory_available_bytes: int
    device: str
    device_reason: str
    devices: dict[str, UsableDevice | DeviceReport]
    disk: DiskRates
    run: RunTime | None = None


def doctor(
    model: str | None,
    selection: SelectionConfig,
    seeding: SeedConfig,
    training: TrainConfig,
    runtime: RuntimeConfig,
    folder: Path,
) -> MachineReport:
    """What a bug report needs; with `model`, also hours of a run, from its plan and these rates.

    Writes a file of 64 MiB into `folder`, and deletes it. Rates are of this moment: a busy machine
    shows lower ones.
    """
    report = examine(folder)
    if model is None:
        return report
    planned = plan(model, selection, seeding, training, runtime)
    return replace(report, run=run_time(planned, training.epochs))


def examine(folder: Path) -> MachineReport:
    """The machine, and the disk that holds `folder`."""
    devices = {name: _device(name) for name in ("cpu", "mps", "cuda")}
    chosen, reason = choose_device("auto")
    return MachineReport(
        globe_stream=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        system=platform.platform(),
        chip=chip(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        memory_available_bytes=psutil.virtual_memory().available,
        device=chosen.type,
        device_reason=reason,
        devices=devices,
        disk=disk_rates(folder),
    )


def run_time(planned: RunEstimate, epochs: int) -> RunTime:
    """What a plan of so many epochs takes on this machine."""
    rates = planned.rates
    return RunTime(
        planned.model,
        epochs,
        planned.peak_memory_bytes,
        planned.least_memory_bytes,
        planned.epoch_flops,
        rates.seconds(Work(single=planned.flops)),
        rates.seconds(Work(read_bytes=planned.bytes_read)),
        planned.seconds,
    )


def _device(name: str) -> UsableDevice | DeviceReport:
    """Device `name` as it can be used."""
    fault = None if name == "cpu" else device_fault(name)
    if fault is not None:
        return DeviceReport(usable=False, reason=fault)
    device = torch.device(name)
    missing = {} if name == "cpu" else solver_faults(device)
    runs = dict.fromkeys(BASIC, name)
    runs |= {operation: "cpu" if operation in missing else name for operation in SOLVERS}
    return UsableDevice(
        usable=True,
        reason="",
        memory_bytes=whole_memory(device),
        operations=runs,
        faults=missing,
        gemm_flops=product_rate(device, torch.float32),
        float32_products=float32_setting(device)[0],
    )


def disk_rates(folder: Path) -> DiskRates:
    """Bytes a second of writing a file into `folder` and reading it.

    The file is flushed, and its pages are dropped before the reading where the system can do that.
    """
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(WRITTEN >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        while os.read(file.fileno(), 1 << 20):
            pass
        read = time.perf_counter() - start
    return DiskRates(str(folder.resolve()), WRITTEN / written, WRITTEN / read)


def chip() -> str:
    """The processor's name, as the system has it."""
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
