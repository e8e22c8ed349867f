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

from globe_stream.code_metrics import code_values
from globe_stream.config import TrainConfig
from globe_stream.context import Context
from globe_stream.measure import ErrorLog
from globe_stream.memory.budget import StagePlan, tile_rows
from globe_stream.scope import Unit
from globe_stream.seeding.statistics import Normalisation
from globe_stream.store import arrays, codes
from globe_stream.store.arrays import StoredTiles
from globe_stream.store.tiles import Tiles
from globe_stream.streaming import Pass, PassCost, finished, stream
from globe_stream.training import schedule
from globe_stream.training.dictionary import Stepped, step_bank
from globe_stream.training.epoch import EpochAccumulator
from globe_stream.training.geometry import Geometry, metric_gram, plain_gram
from globe_stream.training.schedule import Trajectory
from globe_stream.training.sums import EpochSums


@dataclass
class _Standing:
    """What an epoch starts from, in memory."""

    bank: Tiles
    forces: Tiles
    codes: Tensor
    trajectory: Trajectory


class Trainer:
    """Trains one unit until `config.epochs` or until it stands still."""

    def __init__(self, context: Context, unit: Unit, config: TrainConfig, plan: StagePlan) -> None:
        self.context = context
        self.unit = unit
        self.config = config
        self.plan = plan
        self._norms = torch.from_numpy(self._read("norms"))

    def run(self) -> None:
        """Carry out the epochs that are not done yet."""
        trajectory = self._trajectory()
        if trajectory.epoch >= self.config.epochs or self._still(trajectory):
            return
        stage = f"{self.unit.key}/train"
        with self.context.stage(stage, self.plan.price):
            standing = self._load(trajectory)
            while standing.trajectory.epoch < self.config.epochs:
                if self._still(standing.trajectory):
                    break
                standing = self._epoch(standing)
            standing.bank.close()
            standing.forces.close()
        self.context.run.clear_spill()
        self.context.metrics.log("train/memory", self.unit.key, self.context.memory_values(stage))

    # -- one epoch -------------------------------------------------------------------------

    def _epoch(self, standing: _Standing) -> _Standing:
        start = time.monotonic()
        before = standing.trajectory
        how = schedule.epoch_settings(self.config, before, self._gamma())
        geometry = self._geometry(before)
        plain = plain_gram(standing.bank)
        accumulator = EpochAccumulator(
            standing.bank, standing.codes,
            plain if geometry.right is None else metric_gram(standing.bank, geometry),
            geometry, EpochSums.empty(standing.forces), how, self._normalisation(), self._norms,
        )
        task = Pass(self.unit.key, f"epoch {before.epoch + 1}", self.unit.experts,
                    self.plan.knobs.batch)
        cost = stream(self.context, task, accumulator)
        median = float(_support(accumulator.new_codes).median())
        after = schedule.advance(self.config, before, accumulator.log.relative_error, median)
        stepped = self._step(standing, accumulator, plain, geometry, after)
        values = self._values(standing, after, accumulator, stepped, plain)
        values |= {**cost.values(), "time/step_seconds": time.monotonic() - start}
        self._commit(standing, accumulator, stepped, after, task, cost)
        self.context.metrics.log("train", self.unit.key, values, epoch=after.epoch)
        self._say(after, cost)
        return _Standing(stepped.bank, standing.bank, stepped.codes, after)

    def _step(
        self, standing: _Standing, accumulator: EpochAccumulator, plain: Tensor,
        geometry: Geometry, after: Trajectory,
    ) -> Stepped:
        how = schedule.dictionary_step(self.config, standing.trajectory, after)
        previous = None
        if how.momentum and self.context.run.has(self._name("next/momentum")):
            previous = StoredTiles(self.context.run.array(self._name("next/momentum")),
                                   standing.bank)
        return step_bank(
            standing.bank, previous, accumulator.sums, accumulator.new_codes, plain, geometry,
            how, self.context.run.spill(self._flat("momentum")),
        )

    def _commit(
        self, standing: _Standing, accumulator: EpochAccumulator, stepped: Stepped,
        after: Trajectory, task: Pass, cost: PassCost,
    ) -> None:
        count, sums = len(standing.codes), accumulator.sums
        put: dict[str, arrays.Source] = {
            "next/bank": stepped.bank, "next/momentum": stepped.momentum,
            "next/metric": sums.metric / count,
            "next/complement": _complement(sums), "errors": accumulator.log.squared_errors,
        }
        named = {self._name(name): source for name, source in put.items()}
        named |= codes.named(self._name("next"), stepped.codes)
        states, drop = finished(task)
        self.context.run.commit(
            {self.unit.key: self._state(standing, accumulator.log, after, cost),
             self._next_key: after.record(), **states},
            named, move=self._moves(after.epoch), drop=drop,
        )
        stepped.momentum.close()

    def _moves(self, epoch: int) -> list[tuple[str, str]]:
        """The measured state takes the place of the last one; the seeds are kept aside."""
        if epoch == 1:
            return []
        kept = [("bank", "seed/bank"), ("codes", "seed/codes")] if epoch == 2 else []
        moves = [*kept, ("next/bank", "bank"), ("next/codes", "codes")]
        return [(self._name(old), self._name(new)) for old, new in moves]

    # -- what an epoch starts from ------------------------------------------------------------

    def _load(self, trajectory: Trajectory) -> _Standing:
        origin = "next/" if trajectory.epoch else ""
        bank, forces = self._tiles("bank"), self._tiles("forces")
        arrays.read_into(self.context.run.array(self._name(f"{origin}bank")), bank)
        group = self._name("next") if trajectory.epoch else self.unit.key
        dense = codes.load(self.context.run, group, self.unit.bases)
        return _Standing(bank, forces, dense, trajectory)

    def _tiles(self, name: str) -> Tiles:
        path = self.context.run.spill(self._flat(name)) if self.plan.knobs.spill else None
        sizes = self.unit.sizes
        return Tiles((sizes.bases, sizes.rank, sizes.d), tile_rows(sizes),
                     device=self.context.device, path=path)

    def _geometry(self, trajectory: Trajectory) -> Geometry:
        device = self.context.device
        has_metric = self.context.run.has(self._name("next/metric"))
        if not schedule.uses_metric(self.config, trajectory) or not has_metric:
            return Geometry.identity(self.unit.rank, device)
        metric, complement = (torch.from_numpy(self._read(f"next/{name}"))
                              for name in ("metric", "complement"))
        return Geometry.from_sums(metric, complement, device)

    def _trajectory(self) -> Trajectory:
        record = self.context.run.state(self._next_key)
        return schedule.first(self.config) if record is None else Trajectory(**record)

    # -- what is told ----------------------------------------------------------------------

    def _state(
        self, standing: _Standing, log: ErrorLog, after: Trajectory, cost: PassCost
    ) -> dict[str, Any]:
        seeded = self.context.run.state(self.unit.key) or {}
        done = after.epoch >= self.config.epochs or self._still(after)
        activation = schedule.activation(self.config, standing.trajectory, self._gamma())
        return {
            **seeded, "stage": "trained" if done else "training", "epoch": after.epoch,
            "passes": seeded["passes"] + 1, "relative_frobenius_error": log.relative_error,
            "lambda_a": self.config.lambda_a, "activation": activation.name,
            "activation_lambda": activation.lam, "gamma": activation.gamma,
            "temperature": standing.trajectory.temperature,
            "median_support": float(_support(standing.codes).median()),
            "bytes_read": seeded["bytes_read"] + cost.bytes_read,
            "seconds": seeded["seconds"] + cost.seconds,
        }

    def _values(
        self, standing: _Standing, after: Trajectory, accumulator: EpochAccumulator,
        stepped: Stepped, plain: Tensor,
    ) -> dict[str, Any]:
        before = standing.trajectory
        measured = code_values(standing.codes, plain, self.config.support_target())
        return {
            **accumulator.log.metrics(self.unit.experts), **measured,
            "alpha/temperature": before.temperature,
            "schedule/lambda": before.lam, "schedule/beta": schedule.beta(self.config, before),
            "schedule/damping": before.damping, "schedule/restart": after.restart,
            "schedule/warmup": schedule.in_warmup(self.config, before),
            "bank/norm_deviation_max": stepped.largest_norm_change,
            "health/coupling_condition": stepped.condition,
            "health/metric_condition": accumulator.geometry.condition,
            "health/polar_fallbacks": accumulator.polar_fallbacks,
            "memory/rss_bytes": self.context.meter.now(),
        }

    def _say(self, after: Trajectory, cost: PassCost) -> None:
        self.context.progress.say(
            f"{self.unit.key} epoch {after.epoch}/{self.config.epochs}: relF {after.error:.4f}, "
            f"median support {after.median_support:.0f}, {cost.seconds:.1f} s"
        )

    # -- small things ----------------------------------------------------------------------

    def _still(self, trajectory: Trajectory) -> bool:
        return schedule.stopped_early(self.config, trajectory)

    def _gamma(self) -> float:
        """gain sqrt(r d): makes `gain` the RMS of gamma Z, as ||Z||_F = 1."""
        sizes = self.unit.sizes
        return float(self.config.gain * (sizes.rank * sizes.d) ** 0.5)

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


def _support(values: Tensor) -> Tensor:
    """(N,) number of non-zero codes of each expert, as floats."""
    return (values != 0).sum(1).float()


def _complement(sums: EpochSums) -> Tensor:
    """The mean of I - P over the sampled experts (d, d)."""
    d = sums.complement.shape[0]
    eye = torch.eye(d, device=sums.complement.device)
    return eye - sums.complement / max(1, sums.sampled)
