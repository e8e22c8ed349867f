"""What warm starts of the same experts with different options have in common, and handing it on.

Statistics serve every kind of proxies at once; proxies and their Gram matrix serve every method
that works on them; the SVD of equal size depends on the number of parameters alone.
Source: docs/design.md, sections Proxies and Gram space.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import JsonValue

from globe_stream.config import SeedConfig
from globe_stream.engine.metrics import METRICS_FILE, read_metrics
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.records import PROCRUSTES_MEAN
from globe_stream.io import files
from globe_stream.io.links import link_file
from globe_stream.io.records import Json
from globe_stream.seeding.group_stages import proxies_file
from globe_stream.seeding.methods import gram_products, proxies_for
from globe_stream.seeding.records import STAGES
from globe_stream.store import arrays
from globe_stream.store.run import Run

SHARED = ("statistics", "proxies", "gram")
"""Stages whose results are handed on."""

_ARRAYS = {
    "statistics": ("norms", "digests", "experts", "seed/row_energy", "seed/normalised_norms"),
    "proxies": (),
    "gram": ("seed/gram", "seed/proxy_norms", "eigenvalues"),
}
_OF_KIND = {"left_gram": "seed/left_gram", "procrustes": PROCRUSTES_MEAN}


@dataclass(frozen=True)
class SharingKeys:
    """Two warm starts share a stage exactly where these are equal, plain JSON each."""

    statistics: Json  # but for the Procrustes mean
    procrustes_rank: Json | None  # of the mean that the statistics are to hold
    proxies: Json
    baseline: Json


def sharing_keys(config: SeedConfig, groups: tuple[ExpertGroup, ...]) -> SharingKeys:
    """The keys of seeding `groups`, which `config` made of one selection of experts."""
    options = config.identity()
    kind = proxies_for(config.method, config.proxies)
    rank: Json = {"rank": [group.rank for group in groups]}
    statistics = {name: options[name] for name in ("bank_scope", "normalize", "row_subset")}
    of_rows = {}
    if kind == "rows":
        random = config.row_selection == "random"
        of_rows = {"rows": config.row_selection, "seed": config.seed if random else None}
    dense: list[JsonValue] = [
        gram_products(config, len(g.experts), g.bases) is None for g in groups
    ]
    return SharingKeys(
        statistics,
        rank if kind == "procrustes" else None,
        {**statistics, **rank, **of_rows, "kind": kind, "dense": dense},
        {"bank_scope": options["bank_scope"], "svd": [g.sizes.svd_rank for g in groups]},
    )


def hand_on(source: Run, target: Run, group: ExpertGroup, stage: str, kind: str) -> None:
    """Record in `target` that `stage` of SHARED is done, with what it left in `source`.

    `kind` is that of the target's proxies. Raises GlobeError when the source has it not.
    """
    state = f"{group.key}:{stage}"
    record = source.state(state, STAGES[stage])
    assert record is not None
    if stage == "proxies":
        link_file(proxies_file(source, group.key), proxies_file(target, group.key))
    names = [*_ARRAYS[stage]]
    if stage == "statistics" and kind in _OF_KIND:
        names.append(_OF_KIND[kind])
    there = [f"{group.key}/{name}" for name in names if source.has(f"{group.key}/{name}")]
    target.commit({state: record}, {name: arrays.read(source.array(name)) for name in there})


def hand_on_metrics(source: Run, target: Run, stages: Collection[str]) -> None:
    """Begin the metrics of `target`, if it has none yet, with those of `stages` of `source`."""
    path = target.path / METRICS_FILE
    if path.exists():
        return
    names = {f"seed/{stage}" for stage in stages}
    rows = [row for row in read_metrics(source.path / METRICS_FILE) if row.stage in names]
    files.write_text(path, "".join(json.dumps(row.to_json()) + "\n" for row in rows))
