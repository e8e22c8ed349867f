"""Training of one unit: epochs, their commits and their metrics.

The saved state (bank, codes) is the one that the last epoch measured; what training continues
from (next bank, next codes, momentum, metric) is kept beside it under `next`. So the error in
the ledger is always that of the bank beside it, and no pass is spent on measuring alone.
Source: method.md section 4; bank workflow, section 3.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globe_stream.factorization.code_statistics import code_values, median_support
from globe_stream.config import TrainConfig
from globe_stream.engine.context import Context
from globe_stream.factorization.measure import ErrorLog
from globe_stream.memory.cost_model import StagePlan, tile_rows
from globe_stream.factorization.groups import Unit
from globe_stream.seeding.statistics import Normalisation
from globe_stream.store import arrays, codes
from globe_stream.store.arrays import StoredTiles
from globe_stream.store.tiles import Tiles
from globe_stream.engine.stream import Pass, PassCost, finished, stream
from globe_stream.training.bank_update import Stepped, step_bank
from globe_stream.training.epoch import EpochAccumulator
from globe_stream.training.metric import Geometry, metric_gram, plain_gram
from globe_stream.training.schedule import Schedule, Trajectory
from globe_stream.training.moments import EpochSums


@dataclass
class _Standing:
    """What an epoch starts from, in memory."""

    bank: Tiles
    forces: Tiles
    codes: Tensor
    gram: Tensor  # (m, m) of the bank's atoms
    trajectory: Trajectory


class Trainer:
    """Trains one unit until `config.epochs` or until it stands still."""

    def __init__(self, context: Context, unit: Unit, config: TrainConfig, plan: StagePlan) -> None:
        self.context = context
        self.unit = unit
        self.config = config
        self.plan = plan
        sizes = unit.sizes
        # gain sqrt(r d) makes `gain` the RMS of gamma Z, as ||Z||_F = 1.
        gamma = config.gain * (sizes.rank * sizes.d) ** 0.5
        self.schedule = Schedule(config, unit.bases, gamma)
        self._norms = torch.from_numpy(self._read("norms"))

    def run(self) -> None:
        """Carry out the epochs that are not done yet."""
        trajectory = self._trajectory()
        if self._over(trajectory):
            return
        stage = f"{self.unit.key}/train"
        with self.context.stage(stage, self.plan.price):
            standing = self._load(trajectory)
            while not self._over(standing.trajectory):
                standing = self._epoch(standing)
            standing.bank.close()
            standing.forces.close()
        self.context.run.clear_spill()
        self.context.metrics.log("train/memory", self.unit.key, self.context.memory_values(stage))

    # -- one epoch -------------------------------------------------------------------------

    def _epoch(self, standing: _Standing) -> _Standing:
        start, before = time.monotonic(), standing.trajectory
        geometry = self._geometry(before)
        accumulator = EpochAccumulator(
            standing.bank,
            standing.codes,
            self._metric_gram(standing, geometry),
            geometry,
            EpochSums.empty(standing.forces),
            self.schedule.epoch_settings(before),
            self._normalisation(),
            self._norms,
        )
        task = Pass(
            self.unit.key, f"epoch {before.epoch + 1}", self.unit.experts, self.plan.knobs.batch
        )
        cost = stream(self.context, task, accumulator)
        values = self._values(standing, accumulator)
        if self.schedule.is_worse(before, accumulator.log.relative_error):
            after = self._reject(standing, task, cost)
        else:
            after, told = self._accept(standing, accumulator, task, cost)
            values |= told
        values |= {
            "recon/relative_frobenius_error": after.trajectory.error,
            "schedule/rejected": after.trajectory.rejected > before.rejected,
            **cost.values(),
            "time/step_seconds": time.monotonic() - start,
        }
        self.context.metrics.log("train", self.unit.key, values, epoch=after.trajectory.epoch)
        self._say(after.trajectory, values)
        return after

    def _accept(
        self,
        standing: _Standing,
        accumulator: EpochAccumulator,
        task: Pass,
        cost: PassCost,
    ) -> tuple[_Standing, dict[str, Any]]:
        """Save the measured state, take the dictionary step, save what comes next."""
        before = standing.trajectory
        median = median_support(accumulator.new_codes)
        after = self.schedule.accept(before, accumulator.log.relative_error, median)
        stepped = self._step(standing, accumulator)
        sums = accumulator.sums
        put: dict[str, arrays.Source] = {
            "next/bank": stepped.bank,
            "next/momentum": stepped.momentum,
            "next/metric": sums.metric / len(standing.codes),
            "next/complement": sums.mean_complement(),
            "errors": accumulator.log.squared_errors,
            **codes.named("next", stepped.codes),
        }
        states, drop = finished(task)
        self.context.run.commit(
            {
                self.unit.key: self._state(standing, accumulator.log, after, cost),
                self._next_key: after.record(),
                **states,
            },
            {self._name(name): source for name, source in put.items()},
            move=self._moves(),
            drop=drop,
        )
        stepped.momentum.close()
        told = {
            "bank/norm_deviation_max": stepped.largest_norm_change,
            "bank/revived_atoms": stepped.revived,
            "health/coupling_condition": stepped.condition,
        }
        return _Standing(stepped.bank, standing.bank, stepped.codes, stepped.gram, after), told

    def _reject(self, standing: _Standing, task: Pass, cost: PassCost) -> _Standing:
        """Keep the saved state and continue from it."""
        after = self.schedule.reject(standing.trajectory)
        arrays.read_into(self.context.run.array(self._name("bank")), standing.bank)
        dense = codes.load(self.context.run, self.unit.key, self.unit.bases)
        saved = self.context.run.state(self.unit.key) or {}
        states, drop = finished(task)
        put = {"next/bank": standing.bank, **codes.named("next", dense)}
        self.context.run.commit(
            {
                self.unit.key: {**saved, **self._progress(after, cost)},
                self._next_key: after.record(),
                **states,
            },
            {self._name(name): source for name, source in put.items()},
            drop=drop,
        )
        gram = plain_gram(standing.bank)
        return _Standing(standing.bank, standing.forces, dense, gram, after)

    def _step(self, standing: _Standing, accumulator: EpochAccumulator) -> Stepped:
        how = self.schedule.dictionary_step(standing.trajectory)
        previous = None
        if how.momentum and self.context.run.has(self._name("next/momentum")):
            previous = StoredTiles(
                self.context.run.array(self._name("next/momentum")), standing.bank
            )
        return step_bank(
            standing.bank,
            previous,
            accumulator.sums,
            accumulator.new_codes,
            standing.gram,
            accumulator.geometry,
            how,
            self.context.run.spill(self._flat("momentum")),
        )

    def _metric_gram(self, standing: _Standing, geometry: Geometry) -> Tensor:
        if geometry.right is None:
            return standing.gram
        return metric_gram(standing.bank, geometry)

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

    def _load(self, trajectory: Trajectory) -> _Standing:
        origin = "next/" if trajectory.epoch else ""
        bank, forces = self._tiles("bank"), self._tiles("forces")
        arrays.read_into(self.context.run.array(self._name(f"{origin}bank")), bank)
        group = self._name("next") if trajectory.epoch else self.unit.key
        dense = codes.load(self.context.run, group, self.unit.bases)
        return _Standing(bank, forces, dense, plain_gram(bank), trajectory)

    def _tiles(self, name: str) -> Tiles:
        path = self.context.run.spill(self._flat(name)) if self.plan.knobs.spill else None
        sizes = self.unit.sizes
        return Tiles(
            (sizes.bases, sizes.rank, sizes.d),
            tile_rows(sizes),
            device=self.context.device,
            path=path,
        )

    def _geometry(self, trajectory: Trajectory) -> Geometry:
        device = self.context.device
        has_metric = self.context.run.has(self._name("next/metric"))
        if not self.schedule.uses_metric(trajectory) or not has_metric:
            return Geometry.identity(self.unit.rank, device)
        metric, complement = (
            torch.from_numpy(self._read(f"next/{name}")) for name in ("metric", "complement")
        )
        return Geometry.from_sums(metric, complement, device)

    def _trajectory(self) -> Trajectory:
        record = self.context.run.state(self._next_key)
        if record is not None:
            return Trajectory(**record)
        return self.schedule.first(codes.load(self.context.run, self.unit.key, self.unit.bases))

    # -- what is told ----------------------------------------------------------------------

    def _state(
        self, standing: _Standing, log: ErrorLog, after: Trajectory, cost: PassCost
    ) -> dict[str, Any]:
        activation = self.schedule.activation(standing.trajectory.lam)
        return {
            **(self.context.run.state(self.unit.key) or {}),
            **self._progress(after, cost),
            "relative_frobenius_error": log.relative_error,
            "lambda_a": self.config.lambda_a,
            "activation": activation.name,
            "activation_lambda": activation.lam,
            "gamma": activation.gamma,
            "temperature": standing.trajectory.temperature,
            "median_support": median_support(standing.codes),
        }

    def _progress(self, after: Trajectory, cost: PassCost) -> dict[str, Any]:
        """What every epoch changes in the unit's state, whether its state was kept or not."""
        saved = self.context.run.state(self.unit.key) or {}
        return {
            "stage": "trained" if self._over(after) else "training",
            "epoch": after.epoch,
            "passes": saved["passes"] + 1,
            "bytes_read": saved["bytes_read"] + cost.bytes_read,
            "seconds": saved["seconds"] + cost.seconds,
        }

    def _values(self, standing: _Standing, accumulator: EpochAccumulator) -> dict[str, Any]:
        now, target = standing.trajectory, self.schedule.support_target()
        return {
            **accumulator.log.metrics(self.unit.experts),
            **code_values(standing.codes, standing.gram, target),
            "recon/measured_error": accumulator.log.relative_error,
            "alpha/temperature": now.temperature,
            "alpha/target_support": target,
            "schedule/lambda": now.lam,
            "schedule/beta": self.schedule.beta(now),
            "schedule/damping": now.damping,
            "schedule/warmup": self.schedule.in_warmup(now),
            "health/metric_condition": accumulator.geometry.condition,
            "health/polar_fallbacks": accumulator.polar_fallbacks,
            "memory/rss_bytes": self.context.meter.now(),
            "memory/peak_bytes": self.context.meter.stage_peak,
        }

    def _say(self, after: Trajectory, values: dict[str, Any]) -> None:
        rejected = (
            f" (a step to {values['recon/measured_error']:.4f} was taken back)"
            if values["schedule/rejected"]
            else ""
        )
        self.context.progress.say(
            f"{self.unit.key} epoch {after.epoch}/{self.config.epochs}: relF {after.error:.4f}"
            f"{rejected}, median support {values['alpha/median_support']:.0f}, "
            f"{values['time/step_seconds']:.1f} s"
        )

    # -- small things ----------------------------------------------------------------------

    def _over(self, trajectory: Trajectory) -> bool:
        return trajectory.epoch >= self.config.epochs or self.schedule.stopped(trajectory)

    def _normalisation(self) -> Normalisation:
        state = self.context.run.state(self.unit.key) or {}
        return Normalisation(state["mean"], state["scale"])

    @property
    def _next_key(self) -> str:
        return f"{self.unit.key}:next"

    def _name(self, name: str) -> str:
        return f"{self.unit.key}/{name}"

    def _flat(self, name: str) -> str:
        return f"{self.unit.key.replace('/', '-')}-{name}"

    def _read(self, name: str) -> Any:
        return arrays.read(self.context.run.array(self._name(name)))
