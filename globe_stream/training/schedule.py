"""Every decision about an epoch's numbers, made in one place from what was measured so far.

A trajectory goes through warm-up (orthonormal targets, linear), then weight-aware targets, with the
activation and the wanted support brought in from there. A state that measures worse than the saved
one is rejected: training goes back to it without momentum, so the error of the saved state hardly
ever rises. Steps become much shorter only when one is rejected that had gathered no momentum.
Source: docs/design.md, section Schedules; O'Donoghue and Candes, "Adaptive restart for accelerated
gradient schemes" (2015).
"""

from dataclasses import dataclass, replace
from math import ceil

from torch import Tensor

from globe_stream.config import TrainConfig
from globe_stream.factorization.activation import Activation
from globe_stream.io.records import Record
from globe_stream.training.bank_update import BankUpdateSettings
from globe_stream.training.code_update import Coding, first_temperature, next_temperature
from globe_stream.training.epoch import EpochSettings

MAX_DAMPING = 4.0
"""Damping never grows beyond this, or beyond four times a configured one that is above it."""
STABLE_SUPPORT = 0.95
"""Supports that overlap those of the epoch before by so much on average (Jaccard) are stable."""
MOMENTUM_DELAY = 3
"""Momentum grows as k / (k + 3) over the k bank steps since it was last dropped."""
LONE_STEPS = 2
"""So few steps after a restart it is their length that is to blame, not their momentum; in the
warm-up, whose momentum is there from the second step on, one."""
LONE_SHORTER, SHORTER = 2.0, 1.25
"""Damping grows by this factor when a lone step is rejected, and when momentum had gathered."""
RISEN = 1.1
"""Damping grows by this factor when the error rose, though not enough to be rejected."""
RECOVERY = 0.97
"""Damping raised by a rejection returns to the configured one by this factor an epoch."""
CAP_OVER_TARGET = 1.5
"""No code keeps more than this many times the wanted number of atoms, unless `support_cap`."""
LAMBDA_REST = 5
"""Epochs between a rejected step of lambda and the next, half as large."""


@dataclass(frozen=True)
class ScheduleState(Record):
    """Where training stands before an epoch."""

    epoch: int = 0  # epochs done
    error: float | None = None  # relF of the saved state
    best: float | None = None  # the least relF of any state so far
    damping: float = 0.25
    steps: int = 0  # bank steps since momentum was last dropped
    rejected: int = 0  # states that were not kept, in all
    lam: float = 0.0  # of the state to come
    saved_lam: float = 0.0  # of the saved state
    lam_step: float = 1.0
    lam_rest: int = 0  # epochs until lambda may rise again
    temperature: float = 1.0
    still: int = 0  # epochs in a row without improvement
    settled: int = 0  # epochs in a row with stable supports


@dataclass(frozen=True)
class Schedule:
    """The decisions for one group with m = `bases` atoms and argument scale `gamma`."""

    config: TrainConfig
    bases: int
    gamma: float

    def first(self, codes: Tensor) -> ScheduleState:
        """The state of a group that was only seeded, with `codes` (N, m)."""
        config = self.config
        begins_curved = config.warmup_epochs == 0 and config.activation_start == 0
        step = 0.0 if config.activation == "none" else 1 / config.activation_steps
        start = ScheduleState(damping=config.damping, lam_step=step, lam=step * begins_curved)
        target = self.support_target()
        if target is None:
            return start
        low, high = config.temperature_min, config.temperature_max
        warm = first_temperature(codes, target, self._coding(start), low, high)
        return replace(start, temperature=min(max(1.0, warm), high))

    def in_warmup(self, now: ScheduleState) -> bool:
        """Whether the epoch to come is a warm-up epoch."""
        return now.epoch < self.config.warmup_epochs

    def uses_metric(self, now: ScheduleState) -> bool:
        """Whether the epoch to come measures displacements in the shared metric."""
        return self.beta(now) == 1.0 and self.config.targets == "surrogate"

    def beta(self, now: ScheduleState) -> float:
        """Share of the weight-aware targets in the epoch to come; 0 in the warm-up."""
        if self.in_warmup(now):
            return 0.0
        since = now.epoch - self.config.warmup_epochs
        return min(1.0, (since + 1) / (self.config.blend_epochs + 1))

    def activation(self, lam: float) -> Activation:
        """phi at lambda = `lam`."""
        return Activation(self.config.activation, lam, self.gamma)

    def support_target(self) -> int | None:
        """The wanted median support; None where codes are unconstrained.

        It holds from the first epoch on: codes that are sparse from the start cost less in the
        end than dense ones made sparse later (docs/design.md, section Coding).
        """
        target = self.config.support_target()
        return None if target is None or target >= self.bases else target

    def epoch_settings(self, now: ScheduleState) -> EpochSettings:
        """The numbers of the epoch to come."""
        config = self.config
        share = self._warmup_length(now) if self.in_warmup(now) else config.coding_share
        return EpochSettings(
            epoch=now.epoch,
            targets=config.targets,
            beta=self.beta(now),
            activation=self.activation(now.lam),
            damping=now.damping,
            coding_share=share,
            coding=self._coding(now),
            ridge=config.lambda_a,
            target_ridge=config.lambda_t,
            target_weight=now.damping / config.damping,
        )

    def bank_update_settings(self, now: ScheduleState) -> BankUpdateSettings:
        """The numbers of the step that ends the epoch to come."""
        config, steps = self.config, now.steps
        grown = min(config.momentum, steps / (steps + MOMENTUM_DELAY))
        warm = self.in_warmup(now)
        momentum = config.warmup_momentum if warm else grown
        return BankUpdateSettings(
            momentum if steps else 0.0,
            config.lambda_b,
            config.coherence,
            self._warmup_length(now) if warm else 1.0,
        )

    def _warmup_length(self, now: ScheduleState) -> float:
        """Part of the way to its targets that a warm-up epoch goes: less after a rejection."""
        return self.config.damping / now.damping

    def is_worse(self, now: ScheduleState, error: float) -> bool:
        """Whether the state that measured `error` is to be rejected for the saved one."""
        return now.best is not None and error > (1 + self.config.guard) * now.best

    def _damping(self, now: ScheduleState, error: float) -> float:
        """Longer steps again while the error falls, shorter ones when it has risen a little."""
        risen = now.error is not None and error > now.error and now.lam == now.saved_lam
        if risen and not self.in_warmup(now):
            return self._shorter(now, RISEN)
        return max(self.config.damping, RECOVERY * now.damping)

    def reject(self, now: ScheduleState) -> ScheduleState:
        """Back to the saved state: no momentum, lambda as it was, a lone step shorter.

        The supports are those of the saved state again, which counts as stable.
        """
        back = replace(
            self._counted(now, now.error),
            steps=0,
            rejected=now.rejected + 1,
            settled=now.settled + 1,
        )
        if now.lam == now.saved_lam:
            warm = self.in_warmup(now)
            lone = now.steps <= (1 if warm else LONE_STEPS)
            if warm and not lone:
                return back
            return replace(back, damping=self._shorter(now, LONE_SHORTER if lone else SHORTER))
        return replace(
            back,
            lam=now.saved_lam,
            lam_step=now.lam_step / 2,
            lam_rest=LAMBDA_REST,
        )

    def _shorter(self, now: ScheduleState, factor: float) -> float:
        """The damping raised by `factor`, up to a limit."""
        return min(max(MAX_DAMPING, 4 * self.config.damping), factor * now.damping)

    def accept(
        self, now: ScheduleState, error: float, median_support: float, stability: float
    ) -> ScheduleState:
        """On to the next state after an epoch that measured `error` and left `median_support`.

        `stability` is the mean Jaccard similarity of the supports before and after it.
        """
        config = self.config
        ahead = replace(
            self._counted(now, error),
            steps=now.steps + 1,
            best=min(error, error if now.best is None else now.best),
            saved_lam=now.lam,
            damping=self._damping(now, error),
            lam_rest=max(0, now.lam_rest - 1),
            settled=now.settled + 1 if stability >= STABLE_SUPPORT else 0,
        )
        ahead = replace(ahead, lam=self._next_lambda(ahead))
        target = self.support_target()
        if target is None:
            return ahead
        return replace(
            ahead,
            temperature=next_temperature(
                now.temperature,
                median_support,
                target,
                config.temperature_rate,
                config.temperature_min,
                config.temperature_max,
            ),
        )

    def stopped(self, now: ScheduleState) -> bool:
        """Whether relF and the supports have been still for long enough to stop early."""
        return 0 < self.config.patience <= min(now.still, now.settled)

    def _next_lambda(self, ahead: ScheduleState) -> float:
        """lambda rises by a step an epoch once it may, while epochs improve the error."""
        config = self.config
        start = max(config.warmup_epochs, config.activation_start)
        waits = ahead.lam_rest > 0 or ahead.epoch < start
        first = ahead.lam == 0.0
        if waits or not (first or ahead.still == 0):
            return ahead.lam
        return min(1.0, ahead.lam + ahead.lam_step)

    def _coding(self, now: ScheduleState) -> Coding:
        config, target = self.config, self.support_target()
        cap = config.support_cap
        if cap is None and target is not None:
            cap = ceil(CAP_OVER_TARGET * target)
        return Coding(
            steps=config.coding_steps,
            sparse=target is not None or config.support_cap is not None,
            mapping=config.coding,
            temperature=now.temperature,
            prune=config.prune,
            cap=cap,
            l1=config.l1,
        )

    def _counted(self, now: ScheduleState, error: float | None) -> ScheduleState:
        """One more epoch, which left a saved state of relF `error`; the warm-up may stand still."""
        bar = None if now.error is None else now.error * (1 - self.config.tolerance)
        improved = bar is None or error is None or error < bar or self.in_warmup(now)
        return replace(
            now, epoch=now.epoch + 1, error=error, still=0 if improved else now.still + 1
        )
