"""The warm start of one group, stage by stage; a stage that the ledger has is not done again.

    statistics -> proxies -> gram -> atoms (and codes) -> measure -> baseline

`statistics`, `proxies` and `measure` each read the experts once; `gram` and `atoms` work on the
spilled proxies; `baseline` reads a sample of large experts, or all small ones.
Source: docs/design.md, sections Proxies, Gram space and Seeding methods.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from globe_stream.checkpoint.dealing import deal
from globe_stream.config import SeedConfig
from globe_stream.engine.context import Context
from globe_stream.engine.progress import step_bar
from globe_stream.engine.records import PassCost
from globe_stream.engine.stream import Pass, finished, stream
from globe_stream.errors import GlobeError
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.code_statistics import code_statistics
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.measure import MeasureAccumulator
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import (
    PROCRUSTES_MEAN,
    GroupState,
    global_error,
    group_state,
)
from globe_stream.factorization.svd_baseline import (
    BaselineAccumulator,
    sampled_experts,
    seed_passes,
)
from globe_stream.kernels.atoms import unit_mixture_scales
from globe_stream.kernels.gram import normalized
from globe_stream.memory.cost_model import StagePlan, tile_rows
from globe_stream.seeding.gram import ProxyOperator, build_bank, proxy_gram
from globe_stream.seeding.methods import (
    GramView,
    codes_from_gram,
    gram_products,
    proxies_for,
    run_method,
)
from globe_stream.seeding.proxies import ProxyAccumulator, make_projection
from globe_stream.seeding.proxy_tiles import ProxyTiles
from globe_stream.seeding.records import (
    STAGES,
    AtomsRecord,
    BaselineRecord,
    GramRecord,
    MeasureRecord,
    ProxiesRecord,
    SeedingRecords,
    StageRecord,
    StatisticsRecord,
)
from globe_stream.seeding.statistics import StatisticsAccumulator, evenly, require_usable
from globe_stream.store import arrays, codes, digests
from globe_stream.store.run import Run
from globe_stream.store.tiles import Tiles

Stage = TypeVar("Stage", bound=StageRecord)


@dataclass(frozen=True)
class Seeding:
    """What the stages of one group share."""

    context: Context
    group: ExpertGroup
    config: SeedConfig
    plans: dict[str, StagePlan]
    kinds: frozenset[str] = frozenset()
    """Kinds of proxies that the statistics are to serve; empty: the method's own."""
    baseline: BaselineRecord | None = None
    """What the stage of that name would find, where it is known."""

    def scan(self) -> None:
        """Carry out the first pass over the experts, if it is not done yet.

        Raises InputError for an expert that cannot be used: NaN, Inf or too large, and ZeroExperts
        for those that are zero everywhere.
        """
        done = group_state(self.context.run, self.group.key) is not None
        if not done and self.done("statistics", STAGES["statistics"]) is None:
            self.run_stage("statistics")

    def run(self) -> None:
        """Carry out every stage that is not done yet."""
        if group_state(self.context.run, self.group.key) is not None:
            return
        for stage, kind in STAGES.items():
            if self.done(stage, kind) is None or self._lost(stage):
                if stage == "baseline":
                    self.context.run.clear_spill()
                self.run_stage(stage)

    def _lost(self, stage: str) -> bool:
        """Whether `stage` left spilled proxies of another number of processes, still needed."""
        if stage != "proxies" or self.done("atoms", AtomsRecord) is not None:
            return False
        return self.require(stage, ProxiesRecord).processes != self.context.world.size

    def run_stage(self, stage: str) -> None:
        """Carry out one of STAGES; those before it must be done. Spill files stay."""
        steps: dict[str, Callable[[], None]] = {
            "statistics": self._statistics,
            "proxies": self._proxies,
            "gram": self._gram,
            "atoms": self._atoms,
            "measure": self._measure,
            "baseline": self._baseline,
        }
        with self.context.stage(self.stage_name(stage), self.plans[stage].estimate_bytes):
            steps[stage]()
        self._log(stage)

    def done(self, stage: str, kind: type[Stage]) -> Stage | None:
        """What `stage`, whose record is a `kind`, recorded when it was carried out, or None."""
        return self.context.run.state(self.state_key(stage), kind)

    def require(self, stage: str, kind: type[Stage]) -> Stage:
        """As `done`, of a stage that must have been carried out."""
        record = self.done(stage, kind)
        if record is None:
            raise GlobeError(f"{self.context.run.path}: {self.stage_name(stage)} is not done")
        return record

    def state_key(self, stage: str) -> str:
        """The key of the run's state under which `stage` records what it did."""
        return f"{self.group.key}:{stage}"

    def stage_name(self, stage: str) -> str:
        """What the memory meter and the metrics call `stage`."""
        return f"{self.group.key}/seed/{stage}"

    # -- stages ----------------------------------------------------------------------------

    def _statistics(self) -> None:
        experts = list(self.group.experts)
        subset = frozenset(evenly(len(experts), self.config.row_subset or len(experts)))
        accumulator = StatisticsAccumulator(
            experts,
            subset,
            self.kinds or {self._kind},
            self.group.rank,
            self.context.device,
            self.context.world,
        )
        task = self._pass("statistics")
        cost = stream(self.context, task, accumulator)
        statistics = accumulator.result()
        require_usable(experts, statistics.norms)
        normalization = statistics.normalization(self.config.normalize)
        put: dict[str, arrays.Storable] = {
            "norms": statistics.norms,
            digests.NAME: accumulator.digests,
            "seed/row_energy": statistics.row_energy(normalization),
            "seed/normalised_norms": statistics.normalized_norms(
                normalization, accumulator.expert_sums
            ),
            "experts": torch.tensor(
                [[e.layer, e.expert, int(e.shared)] for e in experts], dtype=torch.int32
            ),
        }
        if statistics.left_gram is not None:
            put["seed/left_gram"] = statistics.normalized_left_gram(normalization)
        if statistics.procrustes_mean is not None:
            put[PROCRUSTES_MEAN] = statistics.procrustes_mean
        record = StatisticsRecord(cost, normalization.mean, normalization.scale)
        self._commit("statistics", record, put, task)

    def _proxies(self) -> None:
        projection = make_projection(
            self._kind, self._tensor, self.config, self.group.rank, self.context.device
        )
        tiles = self._proxy_tiles()
        accumulator = ProxyAccumulator(
            tiles.own, projection.project, self._normalization(), tiles.positions
        )
        task = self._pass("proxies", projection.rows)
        cost = stream(self.context, task, accumulator)
        tiles.own.sync()
        tiles.close()
        whole = float(self._tensor("seed/normalised_norms").sum())
        record = ProxiesRecord(
            cost,
            accumulator.energy / whole if whole else 0.0,
            projection.agreement,
            None if projection.rows is None else tuple(projection.rows),
            self.context.world.size,
        )
        self._commit("proxies", record, {}, task)

    def _gram(self) -> None:
        start = time.monotonic()
        tiles = self._proxy_tiles()
        if gram_products(self.config, len(self.group.experts), self.group.bases) is None:
            gram, norms = normalized(proxy_gram(tiles, self.context.device))
            put: dict[str, arrays.Storable] = {
                "seed/gram": gram,
                "seed/proxy_norms": norms,
                "eigenvalues": torch.linalg.eigvalsh(gram).flip(0),
            }
        else:
            put = {"seed/proxy_norms": ProxyOperator(tiles, self.context.device).norms}
        tiles.close()
        self._commit("gram", GramRecord(_cost_since(start)), put)

    def _atoms(self) -> None:
        start = time.monotonic()
        tiles = self._proxy_tiles()
        norms = self._tensor("seed/proxy_norms")
        view = self._view(tiles)
        title, bar = f"{self.group.key} dictionary", self.context.progress
        with step_bar(title, unit="rounds at most", progress=bar) as progress:
            atoms = run_method(self.config, view, self.group.bases, progress)
        self.context.world.broadcast_(atoms.combination)
        fitted = codes_from_gram(view, atoms.combination, kind=self.config.codes)
        dense = fitted.codes * unit_mixture_scales(fitted.codes, fitted.atom_gram)[:, None]
        bank = build_bank(
            tiles, norms, atoms.combination, self.context.run.spill(f"{_flat(self.group.key)}-bank")
        )
        record = AtomsRecord(
            _cost_since(start),
            atoms.explained_variance,
            fitted.relative_error,
            code_statistics(dense, fitted.atom_gram),
            {**atoms.stats, "codes/kkt_residual": fitted.kkt_residual},
        )
        put: dict[str, arrays.Storable] = {
            f"{self.group.key}/bank": bank,
            **codes.named(self.group.key, dense.float()),
        }
        self.context.run.commit({self.state_key("atoms"): record}, put)
        bank.close()
        tiles.close()

    def _measure(self) -> None:
        task, plan = self._pass("measure"), self.plans["measure"]
        bank = self._bank(plan)
        dense = codes.load(self.context.run, self.group.key, self.group.bases)
        accumulator = MeasureAccumulator(
            bank,
            dense,
            Activation(),
            self.config.lambda_a,
            self._normalization(),
            self._tensor("norms"),
        )
        cost = stream(self.context, task, accumulator)
        bank.close()
        record = MeasureRecord(cost, accumulator.summary(self.group.experts))
        self._commit("measure", record, {"errors": accumulator.squared_errors}, task)

    def _baseline(self) -> None:
        sample = sampled_experts(self.group)
        experts = tuple(self.group.experts[k] for k in sample)
        task = Pass(self.group.key, "baseline", experts, self.plans["baseline"].batch_plan.batch)
        baseline = self.baseline or self._measured_baseline(task)
        state = self._seeded_state(baseline)
        states, drop = finished(task)
        self.context.run.commit(
            {
                self.state_key("baseline"): baseline,
                self.group.key: state,
                self.state_key("seeded"): state,
                **states,
            },
            drop=drop,
        )

    def _measured_baseline(self, task: Pass) -> BaselineRecord:
        rank = self.group.sizes.svd_rank
        accumulator = BaselineAccumulator(rank)
        cost = stream(self.context, task, accumulator)
        return BaselineRecord(cost, rank, len(task.experts), accumulator.relative_error)

    # -- pieces ----------------------------------------------------------------------------

    @property
    def _kind(self) -> str:
        return proxies_for(self.config.method, self.config.proxies)

    def _view(self, tiles: ProxyTiles) -> GramView:
        if self.context.run.has(f"{self.group.key}/seed/gram"):
            return GramView.dense(self._tensor("seed/gram"))
        return GramView.operator(ProxyOperator(tiles, self.context.device))

    def _proxy_tiles(self) -> ProxyTiles:
        sizes, world = self.group.sizes, self.context.world
        shares = deal(self.group.experts, world.size)
        own = Tiles(
            (len(shares[world.rank]), sizes.rank, sizes.d),
            tile_rows(sizes),
            dtype=self.group.proxy_dtype,
            device=self.context.device,
            path=proxies_file(self.context.run, self.group.key),
        )
        return ProxyTiles(own, shares, world)

    def _bank(self, plan: StagePlan) -> Tiles:
        path = (
            self.context.run.spill(f"{_flat(self.group.key)}-bank")
            if plan.batch_plan.spill
            else None
        )
        sizes = self.group.sizes
        bank = Tiles(
            (sizes.bases, sizes.rank, sizes.d),
            tile_rows(sizes),
            device=self.context.device,
            path=path,
        )
        arrays.read_into(self.context.run.array(f"{self.group.key}/bank"), bank)
        return bank

    def _normalization(self) -> Normalization:
        record = self.require("statistics", StatisticsRecord)
        return Normalization(record.mean, record.scale)

    def _seeded_state(self, baseline: BaselineRecord) -> GroupState:
        records = SeedingRecords(
            self.require("statistics", StatisticsRecord),
            self.require("proxies", ProxiesRecord),
            self.require("gram", GramRecord),
            self.require("atoms", AtomsRecord),
            self.require("measure", MeasureRecord),
            baseline,
        )
        return records.state(
            method=self.config.method,
            lambda_a=self.config.lambda_a,
            squared_norm=float(self._tensor("norms").sum()),
            passes=seed_passes(self.group),
        )

    def _pass(self, stage: str, rows: list[int] | None = None) -> Pass:
        return Pass(
            self.group.key, stage, self.group.experts, self.plans[stage].batch_plan.batch, rows
        )

    def _commit(
        self,
        stage: str,
        record: StageRecord,
        put: dict[str, arrays.Storable],
        task: Pass | None = None,
    ) -> None:
        states, drop = finished(task) if task else ({}, [])
        self.context.run.commit(
            {self.state_key(stage): record, **states},
            {f"{self.group.key}/{name}": source for name, source in put.items()},
            drop=drop,
        )

    def _log(self, stage: str) -> None:
        values = {
            **self.require(stage, STAGES[stage]).metrics(),
            **self.context.memory_values(self.stage_name(stage)),
        }
        if stage == "baseline":
            values["recon/global_relative_frobenius_error"] = global_error(self.context.run)
        self.context.metrics.log(f"seed/{stage}", self.group.key, values)

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(arrays.read(self.context.run.array(f"{self.group.key}/{name}")))


def proxies_file(run: Run, key: str) -> Path:
    """Where the proxies of the group `key` are spilled until its atoms are made."""
    return run.spill(f"{_flat(key)}-proxies")


def _cost_since(start: float) -> PassCost:
    return PassCost(0, time.monotonic() - start, 0.0)


def _flat(key: str) -> str:
    return key.replace("/", "-")
