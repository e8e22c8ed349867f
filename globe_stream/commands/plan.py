"""What a run would cost, from headers alone: `globe-stream plan`.

Source: contract.md, "Commands"; method.md sections 1, 3 and 4 for the operations.
"""

import shutil
from pathlib import Path
from typing import Any

from globe_stream.engine import device as runtime
from globe_stream.commands.session import memory_limit, open_source
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.memory import allocator, planner
from globe_stream.memory.cost_model import StagePlan, safe_budget
from globe_stream.memory.meter import Meter
from globe_stream.factorization.groups import Sizes, Unit
from globe_stream.factorization.svd_baseline import sampled_experts, seed_passes
from globe_stream.seeding.methods import proxies_for


def estimate(
    model: str,
    selection: SelectionConfig,
    seeding: SeedConfig,
    training: TrainConfig,
    how: RuntimeConfig,
) -> dict[str, Any]:
    """The document of `plan --json`; InputError for whatever `seed` or `train` would refuse."""
    allocator.return_freed_memory()
    source = open_source(model, selection, seeding)
    device, reason = runtime.choose_device(how.device)
    runtime.prepare(device, reason, None)
    runtime.warm_up(device)
    limit, base = memory_limit(how, None), Meter(device).now()
    kind = proxies_for(seeding.method, seeding.proxies)
    needed = [
        stage
        for unit in source.units
        for stage in (
            *planner.seed_stages(unit, kind).values(),
            planner.train_stage(unit, training),
        )
    ]
    planner.require(needed, limit, base)
    stages: list[dict[str, Any]] = []
    for unit in source.units:
        plans = planner.seed_plans(unit, kind, limit, base)
        stages += [
            _stage(f"{unit.key}/seed/{plan.stage.split()[0].split('/')[-1]}", plan, base)
            for plan in plans.values()
        ]
        stages.append(
            _stage(f"{unit.key}/train", planner.train_plan(unit, training, limit, base), base)
        )
    seed_bytes = sum(seed_bytes_read(unit, seeding) for unit in source.units)
    epoch_bytes = sum(unit.sizes.stored_bytes for unit in source.units)
    place = Path.cwd()
    return {
        "format": 1,
        "model": model,
        "memory_budget_bytes": limit,
        "base_bytes": base,
        "least_memory_bytes": safe_budget(max(stage.least(base) for stage in needed)),
        "peak_memory_bytes": max(stage["memory_bytes"] for stage in stages),
        "seed_bytes_read": seed_bytes,
        "epoch_bytes_read": epoch_bytes,
        "bytes_read": seed_bytes + training.epochs * epoch_bytes,
        "passes": min(map(seed_passes, source.units)) + training.epochs,
        "epoch_flops": sum(epoch_operations(unit.sizes) for unit in source.units),
        "disk_bytes": disk_bytes(list(source.units)),
        "disk_free_bytes": shutil.disk_usage(place).free,
        "units": {unit.key: _unit(unit) for unit in source.units},
        "stages": stages,
    }


def seed_bytes_read(unit: Unit, config: SeedConfig) -> int:
    """Bytes that seeding reads: statistics, proxies (selected rows only), measure, baseline."""
    sizes = unit.sizes
    share = sizes.rank / sizes.p if proxies_for(config.method, config.proxies) == "rows" else 1.0
    sample = len(sampled_experts(unit)) / sizes.experts
    return round(sizes.stored_bytes * (2 + share + sample))


def epoch_operations(sizes: Sizes) -> float:
    """Floating-point operations of one surrogate epoch.

    For each expert: compose and both bank products 6 m r d; H H^T 2 r^2 d; W H^T and A^T W 4 p r d;
    A^T A and the solve 4 r^2 p; A^T A H 2 r^2 d; Cholesky r^3 / 3.
    """
    m, r, p, d = sizes.bases, sizes.rank, sizes.p, sizes.d
    each = 6 * m * r * d + 4 * r * r * d + 4 * p * r * d + 4 * r * r * p + r**3 / 3
    return float(sizes.experts * each)


def disk_bytes(units: list[Unit]) -> int:
    """Peak disk of a run directory.

    A trained unit keeps the measured, the next and the seeded bank and the momentum, and while
    committing the new ones; seeding spills the proxies and a bank.
    """
    kept = sum(4 * unit.sizes.bank_bytes for unit in units)
    return kept + max(
        max(
            3 * unit.sizes.bank_bytes,
            unit.sizes.experts * unit.sizes.rank * unit.sizes.d * unit.proxy_dtype.itemsize,
        )
        for unit in units
    )


def _unit(unit: Unit) -> dict[str, Any]:
    sizes = unit.sizes
    return {
        **unit.record(),
        "svd_rank": sizes.svd_rank,
        "parameter_ratio": sizes.parameter_ratio(sizes.experts * sizes.bases),
    }


def _stage(name: str, plan: StagePlan, base: int) -> dict[str, Any]:
    return {
        "stage": name,
        "memory_bytes": base + plan.price,
        "batch": plan.knobs.batch,
        "spill": plan.knobs.spill,
    }
