"""Every decision about an epoch's numbers, made in one place from what was measured so far.

A trajectory goes through warm-up (orthonormal targets), then weight-aware targets. `settings`
turns it into plain numbers for the epoch; `advance` takes the epoch's result.
Source: method.md section 4.3; am-loop notes, sections 1 and 2.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from globe_stream.config import TrainConfig
from globe_stream.fitting import Activation
from globe_stream.training.coding import Coding, next_temperature
from globe_stream.training.dictionary import DictionaryStep
from globe_stream.training.epoch import EpochSettings

WORSE = 1.0005
"""An epoch whose relF is this many times the last one's counts as worse."""
MAX_DAMPING = 4.0


@dataclass(frozen=True)
class Trajectory:
    """Where training stands before an epoch."""

    epoch: int = 0  # epochs done
    error: float | None = None  # relF that the last epoch measured
    best: float | None = None
    damping: float = 0.25
    restart: bool = False  # drop the momentum at the next step
    lam: float = 0.0
    temperature: float = 1.0
    median_support: float | None = None
    still: int = 0  # epochs in a row without improvement

    def record(self) -> dict[str, Any]:
        """As plain values, for the ledger."""
        return asdict(self)


def first(config: TrainConfig) -> Trajectory:
    """The trajectory of a run that was only seeded."""
    return Trajectory(damping=config.damping)


def in_warmup(config: TrainConfig, trajectory: Trajectory) -> bool:
    """Whether the epoch to come is a warm-up epoch."""
    return trajectory.epoch < config.warmup_epochs


def beta(config: TrainConfig, trajectory: Trajectory) -> float:
    """Share of the weight-aware targets in the epoch to come."""
    if in_warmup(config, trajectory):
        return 0.0
    since = trajectory.epoch - config.warmup_epochs
    return min(1.0, (since + 1) / (config.blend_epochs + 1))


def activation(config: TrainConfig, trajectory: Trajectory, gamma: float) -> Activation:
    """The activation of the epoch to come."""
    return Activation(config.activation, trajectory.lam, gamma)


def epoch_settings(config: TrainConfig, trajectory: Trajectory, gamma: float) -> EpochSettings:
    """The numbers of the epoch to come."""
    return EpochSettings(
        targets="orthonormal" if in_warmup(config, trajectory) else config.targets,
        activation=activation(config, trajectory, gamma),
        damping=trajectory.damping,
        coding_share=1.0 if in_warmup(config, trajectory) else config.coding_share,
        coding=_coding(config, trajectory),
        ridge=config.lambda_a,
        target_ridge=config.lambda_t,
    )


def uses_metric(config: TrainConfig, trajectory: Trajectory) -> bool:
    """Whether the epoch to come measures displacements in the shared metric."""
    return not in_warmup(config, trajectory) and config.targets == "surrogate"


def dictionary_step(
    config: TrainConfig, trajectory: Trajectory, after: Trajectory
) -> DictionaryStep:
    """The numbers of the step that ends the epoch between `trajectory` and `after`."""
    momentum = config.warmup_momentum if in_warmup(config, trajectory) else config.momentum
    fresh = after.restart or trajectory.epoch == config.warmup_epochs
    return DictionaryStep(0.0 if fresh else momentum, config.lambda_b, config.coherence)


def advance(
    config: TrainConfig, trajectory: Trajectory, error: float, median_support: float
) -> Trajectory:
    """The trajectory after an epoch that measured `error` and left `median_support`."""
    worse = trajectory.error is not None and error > WORSE * trajectory.error
    best = error if trajectory.best is None else min(trajectory.best, error)
    improved = trajectory.best is None or error < trajectory.best * (1 - config.tolerance)
    ahead = replace(
        trajectory, epoch=trajectory.epoch + 1, error=error, best=best, restart=worse,
        damping=min(MAX_DAMPING, trajectory.damping * (2 if worse else 1)),
        median_support=median_support, still=0 if improved else trajectory.still + 1,
    )
    target = config.support_target()
    if target is not None:
        ahead = replace(ahead, temperature=next_temperature(
            trajectory.temperature, median_support, target, config.temperature_rate,
            config.temperature_min, config.temperature_max,
        ))
    return ahead


def stopped_early(config: TrainConfig, trajectory: Trajectory) -> bool:
    """Whether relF has been still for long enough to stop."""
    return 0 < config.patience <= trajectory.still


def _coding(config: TrainConfig, trajectory: Trajectory) -> Coding:
    return Coding(
        steps=config.coding_steps, sparse=config.support_target() is not None,
        mapping=config.coding, temperature=trajectory.temperature, prune=config.prune,
        cap=config.support_cap, l1=config.l1,
    )
