"""`doctor`'s document as text for people."""

from globe_stream.cli.tables import Document, table
from globe_stream.formatting import format_bytes, format_seconds


def examination(document: Document) -> str:
    """`doctor`."""
    devices, disk = document["devices"], document["disk"]
    found = (
        f"globe-stream {document['globe_stream']}, torch {document['torch']}, "
        f"Python {document['python']}, {document['system']}",
        f"{document['chip']}, {document['cores']} cores, {document['threads']} threads; "
        f"{format_bytes(document['memory_bytes'])}, "
        f"{format_bytes(document['memory_available_bytes'])} available",
        f"--device auto: {document['device']} ({document['device_reason']})",
        "",
        table(
            ("device", "products", "memory"),
            [_device(name, device) for name, device in devices.items()],
        ),
        "",
        _operations({name: device for name, device in devices.items() if device["usable"]}),
        "",
        f"disk of {disk['folder']}: writing {format_bytes(disk['write_bytes_per_second'])}/s, "
        f"reading {format_bytes(disk['read_bytes_per_second'])}/s",
    )
    return "\n".join((*found, *(_run(document["run"]) if "run" in document else ())))


def _device(name: str, device: Document) -> tuple[str, str, str]:
    if not device["usable"]:
        return name, device["reason"], ""
    memory = device["memory_bytes"]
    return (
        name,
        f"{device['gemm_flops'] / 1e9:.0f} GFLOP/s",
        "the machine's" if memory is None else format_bytes(memory),
    )


def _operations(usable: dict[str, Document]) -> str:
    """Where each operation runs, a column for each device that can be used."""
    names = usable["cpu"]["operations"]
    rows = [(name, *(device["operations"][name] for device in usable.values())) for name in names]
    return table(("operation", *usable), rows)


def _run(run: Document) -> tuple[str, ...]:
    return (
        "",
        f"{run['model']}, {run['epochs']} epochs: {format_seconds(run['seconds'])} at these rates "
        f"({format_seconds(run['computing_seconds'])} of arithmetic, "
        f"{format_seconds(run['reading_seconds'])} of reading; an estimate), "
        f"{format_bytes(run['peak_memory_bytes'])} of memory",
    )
