"""What `doctor` found, as text for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from globe_stream.cli.tables import table
from globe_stream.formatting import format_bytes, format_seconds

if TYPE_CHECKING:
    from globe_stream.commands.doctor import DeviceReport, MachineReport, RunTime, UsableDevice


def examination(report: "MachineReport") -> str:
    """`doctor`."""
    found = (
        f"globe-stream {report.globe_stream}, torch {report.torch}, "
        f"Python {report.python}, {report.system}",
        f"{report.chip}, {report.cores} cores, {report.threads} threads; "
        f"{format_bytes(report.memory_bytes)}, "
        f"{format_bytes(report.memory_available_bytes)} available",
        f"--device auto: {report.device} ({report.device_reason})",
        "",
        table(
            ("device", "products", "memory"),
            [_device(name, device) for name, device in report.devices.items()],
        ),
        "",
        _operations(report.devices),
        "",
        f"disk of {report.disk.folder}: "
        f"writing {format_bytes(report.disk.write_bytes_per_second)}/s, "
        f"reading {format_bytes(report.disk.read_bytes_per_second)}/s",
    )
    return "\n".join((*found, *(() if report.run is None else _run(report.run))))


def _device(name: str, device: "UsableDevice | DeviceReport") -> tuple[str, str, str]:
    from globe_stream.commands.doctor import UsableDevice

    if not isinstance(device, UsableDevice):
        return name, device.reason, ""
    memory = device.memory_bytes
    return (
        name,
        f"{device.gemm_flops / 1e9:.0f} GFLOP/s",
        "the machine's" if memory is None else format_bytes(memory),
    )


def _operations(devices: "Mapping[str, UsableDevice | DeviceReport]") -> str:
    """Where each operation runs, a column for each device that can be used."""
    from globe_stream.commands.doctor import UsableDevice

    usable = {name: one for name, one in devices.items() if isinstance(one, UsableDevice)}
    rows = [
        (name, *(device.operations[name] for device in usable.values()))
        for name in usable["cpu"].operations
    ]
    return table(("operation", *usable), rows)


def _run(run: "RunTime") -> tuple[str, ...]:
    return (
        "",
        f"{run.model}, seeding and {run.epochs} epochs: about {format_seconds(run.seconds)} "
        f"({format_seconds(run.computing_seconds)} of products, "
        f"{format_seconds(run.reading_seconds)} of reading beside them), "
        f"{format_bytes(run.peak_memory_bytes)} of memory",
    )
