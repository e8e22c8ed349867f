"""The warm start of one group, stage by stage; a stage that the ledger has is not done again.

    statistics -> proxies -> gram -> atoms (and codes) -> measure -> baseline

`statistics`, `proxies` and `measure` each read the experts once; `gram` and `atoms` work on the
spilled proxies; `baseline` reads a sample of large experts, or all small ones.
Source: docs/design.md, sections Proxies, Gram space and Seeding methods.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from globe_stream.engine.progress import step_bar
from globe_stream.engine.records import PassCost
from globe_stream.engine.stream import Pass, finished, stream
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.code_statistics import code_statistics
from globe_stream.factorization.measure import MeasureAccumulator
from globe_stream.factorization.records import (
    PROCRUSTES_MEAN,
    GroupState,
    group_state,
)
from globe_stream.factorization.svd_baseline import (
    ENERGIES,
    BaselineAccumulator,
    sampled_experts,
    seed_passes,
)
from globe_stream.kernels.atoms import unit_mixture_scales
from globe_stream.kernels.gram import normalized
from globe_stream.seeding.gram import ProxyOperator, build_bank, proxy_gram
from globe_stream.seeding.group_stages import GroupStages, flat, proxies_file
from globe_stream.seeding.methods import (
    GramView,
    codes_from_gram,
    gram_products,
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
    StatisticsRecord,
)
from globe_stream.seeding.statistics import StatisticsAccumulator, evenly, require_usable
from globe_stream.store import arrays, codes, digests

Baseline = tuple[BaselineRecord, torch.Tensor]
"""What the stage of that name finds, and the energies of the singular directions."""


@dataclass(frozen=True)
class Seeding(GroupStages):
    """The stages of one group."""

    kinds: frozenset[str] = frozenset()
    """Kinds of proxies that the statistics are to serve; empty: the method's own."""
    baseline: Baseline | None = None
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
        """Whether `stage` left proxies that are gone, or of other processes, and still needed."""
        if stage != "proxies" or self.done("atoms", AtomsRecord) is not None:
            return False
        world = self.context.world
        gone = not proxies_file(self.context.run, self.group.key).exists()
        others = self.require(stage, ProxiesRecord).processes != world.size
        return others or any(world.gather(gone))

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
        self.log(stage)

    # -- stages ----------------------------------------------------------------------------

    def _statistics(self) -> None:
        experts = list(self.group.experts)
        subset = frozenset(evenly(len(experts), self.config.row_subset or len(experts)))
        accumulator = StatisticsAccumulator(
            experts,
            subset,
            self.kinds or {self.kind},
            self.group.rank,
            self.context.device,
            self.context.world,
        )
        task = self.task("statistics")
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
        self.commit("statistics", record, put, task)

    def _proxies(self) -> None:
        projection = make_projection(
            self.kind, self.tensor, self.config, self.group.rank, self.context.device
        )
        tiles = self.proxy_tiles()
        accumulator = ProxyAccumulator(
            tiles.own, projection.project, self.normalization(), tiles.positions
        )
        task = self.task("proxies", projection.rows)
        cost = stream(self.context, task, accumulator)
        tiles.own.sync()
        tiles.close()
        whole = float(self.tensor("seed/normalised_norms").sum())
        record = ProxiesRecord(
            cost,
            accumulator.energy / whole if whole else 0.0,
            projection.agreement,
            None if projection.rows is None else tuple(projection.rows),
            self.context.world.size,
        )
        self.commit("proxies", record, {}, task)

    def _gram(self) -> None:
        start = time.monotonic()
        tiles = self.proxy_tiles()
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
        self.commit("gram", GramRecord(_cost_since(start)), put)

    def _atoms(self) -> None:
        start = time.monotonic()
        tiles = self.proxy_tiles()
        norms = self.tensor("seed/proxy_norms")
        view = self._view(tiles)
        title, bar = f"{self.group.key} dictionary", self.context.progress
        with step_bar(title, unit="rounds at most", progress=bar) as progress:
            atoms = run_method(self.config, view, self.group.bases, progress)
        self.context.world.broadcast_(atoms.combination)
        fitted = codes_from_gram(view, atoms.combination, kind=self.config.codes)
        dense = fitted.codes * unit_mixture_scales(fitted.codes, fitted.atom_gram)[:, None]
        bank = build_bank(
            tiles, norms, atoms.combination, self.context.run.spill(f"{flat(self.group.key)}-bank")
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
        task, plan = self.task("measure"), self.plans["measure"]
        bank = self.bank(plan)
        dense = codes.load(self.context.run, self.group.key, self.group.bases)
        accumulator = MeasureAccumulator(
            bank,
            dense,
            Activation(),
            self.config.lambda_a,
            self.normalization(),
            self.tensor("norms"),
        )
        cost = stream(self.context, task, accumulator)
        bank.close()
        record = MeasureRecord(cost, accumulator.summary(self.group.experts))
        self.commit("measure", record, {"errors": accumulator.squared_errors}, task)

    def _baseline(self) -> None:
        sample = sampled_experts(self.group)
        experts = tuple(self.group.experts[k] for k in sample)
        task = Pass(self.group.key, "baseline", experts, self.plans["baseline"].batch_plan.batch)
        baseline, energies = self.baseline or self._measured_baseline(task)
        state = self._seeded_state(baseline)
        states, drop = finished(task)
        self.context.run.commit(
            {
                self.state_key("baseline"): baseline,
                self.group.key: state,
                self.state_key("seeded"): state,
                **states,
            },
            {f"{self.group.key}/{ENERGIES}": energies},
            drop=drop,
        )

    def _measured_baseline(self, task: Pass) -> Baseline:
        sizes = self.group.sizes
        accumulator = BaselineAccumulator(sizes.svd_rank, min(sizes.p, sizes.d))
        cost = stream(self.context, task, accumulator)
        error = accumulator.relative_error
        record = BaselineRecord(cost, sizes.svd_rank, len(task.experts), error)
        return record, accumulator.energies

    # -- pieces ----------------------------------------------------------------------------

    def _view(self, tiles: ProxyTiles) -> GramView:
        if self.context.run.has(f"{self.group.key}/seed/gram"):
            return GramView.dense(self.tensor("seed/gram"))
        return GramView.operator(ProxyOperator(tiles, self.context.device))

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
            squared_norm=float(self.tensor("norms").sum()),
            passes=seed_passes(self.group),
        )


def _cost_since(start: float) -> PassCost:
    return PassCost(0, time.monotonic() - start, 0.0)
