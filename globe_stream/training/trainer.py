"""Training of one group: epochs, their commits and their metrics.

The saved state (bank, codes) is the one that the last epoch measured; what training continues
from (next bank, next codes, momentum, metric) is kept beside it under `next`. So the error in
the ledger is always that of the bank beside it, and no pass is spent on measuring alone.
Source: docs/design.md, section Alternating minimization.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from globe_stream.config import TrainConfig
from globe_stream.engine.context import Context
from globe_stream.engine.metrics import MetricValues
from globe_stream.engine.records import PassCost
from globe_stream.engine.stream import Pass, finished, stream
from globe_stream.factorization.code_statistics import (
    code_statistics,
    median_support,
    support_stability,
)
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import (
    PROCRUSTES_MEAN,
    GroupState,
    global_error,
    seeded_state,
)
from globe_stream.kernels.dense_solvers import FALLBACKS
from globe_stream.memory.cost_model import StagePlan, atom_chunk_bytes, tile_rows
from globe_stream.store import arrays, codes
from globe_stream.store.arrays import StoredTiles
from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import BankUpdate, update_bank
from globe_stream.training.epoch import EpochAccumulator
from globe_stream.training.epoch_record import (
    Measured,
    accepted,
    progressed,
    schedule_metrics,
    step_metrics,
)
from globe_stream.training.metric import Metric, metric_gram, moving_mean, plain_gram
from globe_stream.training.moments import EpochMoments
from globe_stream.training.schedule import Schedule, ScheduleState
from globe_stream.training.warnings import missed_targets


@dataclass
class TrainerState:
    """What an epoch starts from, in memory."""

    bank: Tiles
    gradients: Tiles
    codes: Tensor
    gram: Tensor  # (m, m) of the bank's atoms
    schedule_state: ScheduleState


class Trainer:
    """Trains one group until `config.epochs` or until it stands still."""

    def __init__(
        self, context: Context, group: ExpertGroup, config: TrainConfig, plan: StagePlan
    ) -> None:
        self.context = context
        self.group = group
        self.config = config
        self.plan = plan
        sizes = group.sizes
        # gain sqrt(r d) makes `gain` the RMS of gamma Z, as ||Z||_F = 1.
        gamma = config.gain * (sizes.rank * sizes.d) ** 0.5
        self.schedule = Schedule(config, group.bases, gamma)
        self._norms = torch.from_numpy(self._read("norms"))
        self._counted = time.monotonic()  # up to when this group's seconds are in its state

    def run(self) -> None:
        """Carry out the epochs that are not done yet."""
        schedule_state = self._schedule_state()
        if self._over(schedule_state):
            return
        stage = f"{self.group.key}/train"
        with self.context.stage(stage, self.plan.estimate_bytes):
            current = self._load(schedule_state)
            while not self._over(current.schedule_state):
                current = self._epoch(current)
            current.bank.close()
            current.gradients.close()
        self.context.run.clear_spill()
        self.context.metrics.log("train/memory", self.group.key, self.context.memory_values(stage))

    # -- one epoch -------------------------------------------------------------------------

    def _epoch(self, current: TrainerState) -> TrainerState:
        start, before = time.monotonic(), current.schedule_state
        metric = self._metric(before)
        accumulator, task, cost = self._pass(current, metric)
        measured = Measured(
            accumulator.log.summary(self.group.experts),
            code_statistics(current.codes, current.gram, self.schedule.support_target()),
        )
        error = measured.errors.relative_frobenius_error
        step: MetricValues = {}
        if rejected := self.schedule.is_worse(before, error):
            after = self._reject(current, task, cost)
        else:
            after, update = self._accept(current, accumulator, measured, task, cost)
            stability = support_stability(current.codes, accumulator.new_codes)
            step = step_metrics(update, accumulator.candidates, stability)
        values: dict[str, JsonValue] = {
            **measured.metrics(rejected=rejected),
            "recon/relative_frobenius_error": after.schedule_state.error,
            "recon/measured_error": error,
            "recon/global_relative_frobenius_error": global_error(self.context.run),
            **schedule_metrics(self.schedule, before, after.schedule_state),
            "health/metric_condition": metric.condition,
            "memory/rss_bytes": self.context.meter.now(),
            **FALLBACKS.metrics(self.context.device),
            "memory/peak_bytes": self.context.meter.stage_peak,
            **step,
            **cost.metrics(),
            **self.context.computed(f"{self.group.key} {task.stage}", time.monotonic() - start),
            "time/step_seconds": time.monotonic() - start,
        }
        self.context.metrics.log("train", self.group.key, values, epoch=after.schedule_state.epoch)
        self._say(after.schedule_state, error if rejected else None, time.monotonic() - start)
        return after

    def _pass(
        self, current: TrainerState, metric: Metric
    ) -> tuple[EpochAccumulator, Pass, PassCost]:
        """Measure `current` and gather the sums of its step, in one pass over the experts."""
        before = current.schedule_state
        accumulator = EpochAccumulator(
            current.bank,
            current.codes,
            self._metric_gram(current, metric),
            metric,
            EpochMoments.empty(current.gradients),
            replace(self.schedule.epoch_settings(before), precision=self.context.precision),
            self._normalization(),
            self._norms,
            self._initial_mean(before),
        )
        task = Pass(
            self.group.key,
            f"epoch {before.epoch + 1}",
            self.group.experts,
            self.plan.batch_plan.batch,
        )
        begin = time.monotonic()
        cost = stream(self.context, task, accumulator)
        self._counted += time.monotonic() - begin  # they are in `cost`, with attempts before
        return accumulator, task, cost

    def _accept(
        self,
        current: TrainerState,
        accumulator: EpochAccumulator,
        measured: Measured,
        task: Pass,
        cost: PassCost,
    ) -> tuple[TrainerState, BankUpdate]:
        """Save the measured state, take the dictionary step, save what comes next."""
        before = current.schedule_state
        median = median_support(accumulator.new_codes)
        stability = support_stability(current.codes, accumulator.new_codes)
        error = accumulator.log.relative_error
        after = self.schedule.accept(before, error, median, stability)
        update = self._step(current, accumulator)
        put: dict[str, arrays.Storable] = {
            "next/bank": update.bank,
            "next/momentum": update.momentum,
            **self._metric_means(accumulator.moments),
            "errors": accumulator.log.squared_errors,
            **codes.named("next", update.codes),
        }
        states, drop = finished(task)
        self.context.run.commit(
            {
                self.group.key: self._warned(
                    accepted(self._progressed(after, cost), self.schedule, before, measured), after
                ),
                self._next_key: after,
                **states,
            },
            {self._name(name): source for name, source in put.items()},
            move=self._moves(),
            drop=drop,
        )
        update.momentum.close()
        state = TrainerState(update.bank, current.bank, update.codes, update.gram, after)
        return state, update

    def _reject(self, current: TrainerState, task: Pass, cost: PassCost) -> TrainerState:
        """Keep the saved state and continue from it."""
        after = self.schedule.reject(current.schedule_state)
        arrays.read_into(self.context.run.array(self._name("bank")), current.bank)
        dense = codes.load(self.context.run, self.group.key, self.group.bases)
        states, drop = finished(task)
        put = {"next/bank": current.bank, **codes.named("next", dense)}
        self.context.run.commit(
            {
                self.group.key: self._warned(self._progressed(after, cost), after),
                self._next_key: after,
                **states,
            },
            {self._name(name): source for name, source in put.items()},
            drop=drop,
        )
        gram = plain_gram(current.bank)
        return TrainerState(current.bank, current.gradients, dense, gram, after)

    def _step(self, current: TrainerState, accumulator: EpochAccumulator) -> BankUpdate:
        settings = self.schedule.bank_update_settings(current.schedule_state)
        previous = None
        if settings.momentum and self.context.run.has(self._name("next/momentum")):
            previous = StoredTiles(
                self.context.run.array(self._name("next/momentum")), current.bank
            )
        return update_bank(
            current.bank,
            previous,
            accumulator.moments,
            accumulator.new_codes,
            current.gram,
            accumulator.metric,
            settings,
            self.context.run.spill(self._flat("momentum")),
            self.context.world,
        )

    def _initial_mean(self, before: ScheduleState) -> Tensor | None:
        """The warm start's mean T (r, d), in an epoch with targets that are rotated to it."""
        if self.config.warmup_targets == "current" or self.schedule.beta(before) == 1.0:
            return None
        mean: Tensor = torch.from_numpy(self._read(PROCRUSTES_MEAN)).to(self.context.device)
        return mean

    def _metric_gram(self, current: TrainerState, metric: Metric) -> Tensor:
        if metric.right is None:
            return current.gram
        chunk = atom_chunk_bytes(self.group.sizes, self.plan.batch_plan)
        return metric_gram(current.bank, metric, self.context.world, chunk)

    def _moves(self) -> list[tuple[str, str]]:
        """The measured state takes the place of the saved one; the seeds are kept aside."""
        if not self.context.run.has(self._name("next/bank")):
            return []
        seeds = (
            []
            if self.context.run.has(self._name("seed/bank"))
            else [("bank", "seed/bank"), ("codes", "seed/codes")]
        )
        moves = [*seeds, ("next/bank", "bank"), ("next/codes", "codes")]
        return [(self._name(old), self._name(new)) for old, new in moves]

    # -- what an epoch starts from ------------------------------------------------------------

    def _load(self, schedule_state: ScheduleState) -> TrainerState:
        origin = "next/" if schedule_state.epoch else ""
        bank, gradients = self._tiles("bank"), self._tiles("gradients")
        arrays.read_into(self.context.run.array(self._name(f"{origin}bank")), bank)
        group = self._name("next") if schedule_state.epoch else self.group.key
        dense = codes.load(self.context.run, group, self.group.bases)
        return TrainerState(bank, gradients, dense, plain_gram(bank), schedule_state)

    def _tiles(self, name: str) -> Tiles:
        path = self.context.run.spill(self._flat(name)) if self.plan.batch_plan.spill else None
        sizes = self.group.sizes
        return Tiles(
            (sizes.bases, sizes.rank, sizes.d),
            tile_rows(sizes),
            device=self.context.device,
            path=path,
        )

    def _metric(self, schedule_state: ScheduleState) -> Metric:
        device = self.context.device
        has_metric = self.context.run.has(self._name("next/metric"))
        if not self.schedule.uses_metric(schedule_state) or not has_metric:
            return Metric.identity(self.group.rank, device)
        adapter_moment, row_projector = (
            torch.from_numpy(self._read(f"next/{name}")) for name in ("metric", "complement")
        )
        return Metric.from_moments(adapter_moment, row_projector, device)

    def _metric_means(self, moments: EpochMoments) -> dict[str, Tensor]:
        """What the next epoch's metric is made of, by the names that `_metric` reads."""
        found = {
            "next/metric": moments.mean_adapter_moment(),
            "next/complement": moments.mean_residual_projector(),
        }
        begun = self.context.run.has(self._name("next/metric"))
        return {
            name: moving_mean(torch.from_numpy(self._read(name)) if begun else None, newest)
            for name, newest in found.items()
        }

    def _schedule_state(self) -> ScheduleState:
        state = self.context.run.state(self._next_key, ScheduleState)
        if state is not None:
            return state
        return self.schedule.first(codes.load(self.context.run, self.group.key, self.group.bases))

    def _say(self, after: ScheduleState, rejected: float | None, seconds: float) -> None:
        """One line for an epoch; `rejected` is the relF of a state that was not kept."""
        note = "" if rejected is None else f" (a step to {rejected:.4f} was taken back)"
        support = seeded_state(self.context.run, self.group.key).median_support
        self.context.progress.say(
            f"{self.group.key} epoch {after.epoch}/{self.config.epochs}: relF {after.error:.4f}"
            f"{note}, median support {support:.0f}, {seconds:.1f} s"
        )

    # -- small things ----------------------------------------------------------------------

    def _over(self, schedule_state: ScheduleState) -> bool:
        return schedule_state.epoch >= self.config.epochs or self.schedule.stopped(schedule_state)

    def _normalization(self) -> Normalization:
        state = seeded_state(self.context.run, self.group.key)
        return Normalization(state.mean, state.scale)

    def _progressed(self, after: ScheduleState, cost: PassCost) -> GroupState:
        saved = seeded_state(self.context.run, self.group.key)
        last, self._counted = self._counted, time.monotonic()
        return progressed(saved, after, cost, self._counted - last, over=self._over(after))

    def _warned(self, state: GroupState, after: ScheduleState) -> GroupState:
        """`state` with what training ends without, if it ends with the epoch before `after`."""
        missed = missed_targets(self.config, after, self.group.bases, state.median_support)
        return replace(state, warnings=tuple(missed) if self._over(after) else ())

    @property
    def _next_key(self) -> str:
        return f"{self.group.key}:next"

    def _name(self, name: str) -> str:
        return f"{self.group.key}/{name}"

    def _flat(self, name: str) -> str:
        return f"{self.group.key.replace('/', '-')}-{name}"

    def _read(self, name: str) -> Any:
        return arrays.read(self.context.run.array(self._name(name)))
