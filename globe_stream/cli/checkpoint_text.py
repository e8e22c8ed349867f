"""What commands about checkpoints found, as text for people: inspect, plan, synth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from globe_stream.cli.tables import table
from globe_stream.formatting import count_of, format_bytes, format_seconds

if TYPE_CHECKING:
    from globe_stream.checkpoint.summary import CheckpointSummary
    from globe_stream.commands.estimate import RunEstimate
    from globe_stream.synthetic.checkpoints import SyntheticResult


def inventory(summary: "CheckpointSummary") -> str:
    """`inspect`."""
    heads = ("family", "experts", "layers", "a layer", "p x d", "dtype", "size")
    rows = [
        (
            name,
            str(family.experts),
            _ranges(family.layers),
            str(family.experts_per_layer),
            f"{family.p} x {family.d}",
            family.dtype,
            format_bytes(family.bytes),
        )
        for name, family in summary.families.items()
    ]
    head = (
        f"{summary.model}: {summary.model_type}, layout {summary.layout}, "
        f"{count_of(summary.shards, 'shard')}, {format_bytes(summary.bytes)}"
    )
    return f"{head}\n\n{table(heads, rows)}"


def estimate(run: "RunEstimate") -> str:
    """`plan`."""
    return "\n".join(
        (
            _groups(run),
            "",
            _stages(run),
            "",
            f"memory: {format_bytes(run.peak_memory_bytes)} of "
            f"{format_bytes(run.memory_budget_bytes)}, of which "
            f"{format_bytes(run.base_bytes)} for the program itself; "
            f"--memory must be {run.least_memory_bytes >> 20}MiB at least",
            f"reading: {format_bytes(run.seed_bytes_read)} to seed, "
            f"{format_bytes(run.epoch_bytes_read)} an epoch, "
            f"{format_bytes(run.bytes_read)} in {run.passes} passes in all",
            f"arithmetic: {run.seed_flops / 1e12:.2f} TFLOP to seed, "
            f"{run.warmup_epoch_flops / 1e12:.2f} the first epoch, "
            f"{run.epoch_flops / 1e12:.2f} one after the warm-up",
            _time(run),
            *_spilled(run),
            f"disk: {format_bytes(run.disk_bytes)} at most, "
            f"{format_bytes(run.disk_free_bytes)} free",
        )
    )


def _groups(run: "RunEstimate") -> str:
    heads = ("bank", "experts", "p x d", "m", "r", "kept", "SVD rank")
    rows = [
        (
            key,
            str(group.experts),
            f"{group.p} x {group.d}",
            str(group.bases),
            str(group.rank),
            f"{group.parameter_ratio:.1%}",
            str(group.svd_rank),
        )
        for key, group in run.units.items()
    ]
    return table(heads, rows)


def _stages(run: "RunEstimate") -> str:
    rows = [
        (
            stage.stage,
            format_bytes(stage.memory_bytes),
            str(stage.batch),
            "on disk" if stage.spill else "resident",
        )
        for stage in run.stages
    ]
    return table(("stage", "peak memory", "batch", "bank"), rows)


def _spilled(run: "RunEstimate") -> list[str]:
    """What banks on disk cost, if there are any."""
    if not run.spilled_epoch_bytes:
        return []
    return [
        f"banks on disk: {format_bytes(run.spilled_epoch_bytes)} written and read an epoch; "
        "a larger --memory saves passes over them"
    ]


def _time(run: "RunEstimate") -> str:
    """What a run takes at the rates that were measured."""
    rates = run.rates
    disk = "no disk" if rates.disk is None else f"{rates.disk / 1e9:.1f} GB/s"
    return (
        f"time: about {format_seconds(run.seconds)} here "
        f"({rates.single / 1e9:.0f} GFLOP/s in large products, {disk}): "
        f"{format_seconds(run.seed_seconds)} to seed, "
        f"{format_seconds(run.warmup_epoch_seconds)} the first epoch, "
        f"{format_seconds(run.epoch_seconds)} one after the warm-up"
    )


def synthetic(written: "SyntheticResult") -> str:
    """`synth`."""
    return (
        f"{written.out}: {count_of(written.shards, 'shard')}, "
        f"{format_bytes(written.bytes)} in {format_seconds(written.seconds)}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 5 for [0, 1, 2, 3, 5]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
