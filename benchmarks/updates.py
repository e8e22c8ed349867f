"""Several bank updates a pass: the trainer's own step, taken after every U-th of the experts.

Experts are dealt out over the U parts of a pass in turn. Each part steps from its own experts'
gradients, in the code moment of all (of the other parts from when they were last seen) and with the
momentum of the last step. Warm-up epochs have one step. In memory, and no step is ever taken
back. The error is that of the state at the beginning of a pass, measured by itself: with U > 1 no
pass of the training measures any one state, which is what speaks against it.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from runs import Task
from torch import Tensor

from globe_stream.checkpoint.reader import Batch, read_expert
from globe_stream.commands.experts import open_experts
from globe_stream.commands.seed import seed
from globe_stream.config import RuntimeConfig, TrainConfig
from globe_stream.factorization.adapters import fit_adapters
from globe_stream.factorization.compose import compose
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import seeded_state
from globe_stream.kernels.workspace import Workspace
from globe_stream.store import arrays, codes
from globe_stream.store.run import Run
from globe_stream.store.tiles import Tiles
from globe_stream.training.bank_update import update_bank
from globe_stream.training.epoch import EpochAccumulator
from globe_stream.training.metric import Metric, metric_gram, moving_mean, plain_gram
from globe_stream.training.moments import EpochMoments
from globe_stream.training.schedule import Schedule, ScheduleState

CPU = torch.device("cpu")


@dataclass
class _State:
    """What training carries from one part of a pass to the next."""

    bank: Tiles
    codes: Tensor  # (N, m)
    momentum: Tiles | None = None
    steps: int = 0  # of the bank, so far
    # by part, from when it was last seen
    code_moment: dict[int, Tensor] = field(default_factory=dict)
    # moving means, None before the first part
    adapter_moment: Tensor | None = None
    row_projector: Tensor | None = None


def updates_curve(
    task: Task, training: TrainConfig, settings: RuntimeConfig, updates: int, scratch: Path
) -> tuple[list[float], float]:
    """relF at the beginning of each of `training.epochs` passes, and the seconds of all steps."""
    run_path = scratch / f"updates-{updates}"
    seed(task.model, run_path, task.selection, task.seeding, settings, silent=True)
    group = open_experts(task.model, task.selection, task.seeding).groups[0]
    with Run(run_path, writable=False) as run:
        state = _seeded(run, group)
        found = seeded_state(run, group.key)
        norms = torch.from_numpy(arrays.read(run.array(f"{group.key}/norms")))
    by = Normalization(found.mean, found.scale)
    weights = torch.stack([read_expert(expert) for expert in group.experts])
    gamma = training.gain * (group.rank * group.sizes.d) ** 0.5
    schedule = Schedule(training, group.bases, gamma)
    now, errors, seconds = schedule.first(state.codes), [], 0.0
    for _ in range(training.epochs):
        errors.append(_error(state, weights, by, schedule, now))
        begin = time.monotonic()
        parts = 1 if schedule.in_warmup(now) else updates
        if len(state.code_moment) != parts:
            state.code_moment.clear()
        for part in range(parts):
            _part(state, weights, by, norms, schedule, now, part, parts, scratch)
        seconds += time.monotonic() - begin
        now = schedule.accept(now, errors[-1], float(group.bases), 1.0)
    return errors, seconds


def _seeded(run: Run, group: ExpertGroup) -> _State:
    sizes = group.sizes
    bank = Tiles((sizes.bases, sizes.rank, sizes.d), sizes.rank)
    arrays.read_into(run.array(f"{group.key}/bank"), bank)
    return _State(bank, codes.load(run, group.key, group.bases))


def _error(
    state: _State, weights: Tensor, by: Normalization, schedule: Schedule, now: ScheduleState
) -> float:
    mixtures = compose(state.codes, state.bank, Workspace(CPU))
    settings = schedule.activation(now.lam)
    fit = fit_adapters(by.apply_(weights.clone()), mixtures, settings, schedule.config.lambda_a)
    lost = float(fit.squared_error.double().sum()) * by.scale**2
    relative: float = (lost / float(weights.double().square().sum())) ** 0.5
    return relative


def _part(
    state: _State,
    weights: Tensor,
    by: Normalization,
    norms: Tensor,
    schedule: Schedule,
    now: ScheduleState,
    part: int,
    updates: int,
    scratch: Path,
) -> None:
    """Take one part of a pass and its bank step."""
    bank, positions = state.bank, list(range(part, len(weights), updates))
    metric = Metric.identity(bank.shape[1], CPU)
    if schedule.uses_metric(now) and state.adapter_moment is not None:
        assert state.row_projector is not None
        metric = Metric.from_moments(state.adapter_moment, state.row_projector, CPU)
    gram = plain_gram(bank) if metric.right is None else metric_gram(bank, metric)
    moments = EpochMoments.empty(Tiles(bank.shape, bank.shape[1]))
    settings = schedule.epoch_settings(now)
    epoch = EpochAccumulator(bank, state.codes, gram, metric, moments, settings, by, norms)
    epoch.update(Batch(positions, weights[positions].clone()))
    state.code_moment[part] = moments.code_moment.clone()
    if moments.sampled:  # the experts of the metric may all lie in other parts
        state.adapter_moment = moving_mean(state.adapter_moment, moments.mean_adapter_moment())
        state.row_projector = moving_mean(state.row_projector, moments.mean_residual_projector())
    moments.code_moment = _mean(state.code_moment) * updates
    step = schedule.bank_update_settings(replace(now, steps=state.steps))
    path = scratch / f"momentum-{state.steps % 2}"
    update = update_bank(
        bank, state.momentum, moments, epoch.new_codes, plain_gram(bank), metric, step, path
    )
    if state.momentum is not None:
        state.momentum.close()
    state.momentum = update.momentum
    state.bank, state.codes, state.steps = update.bank, update.codes, state.steps + 1


def _mean(parts: dict[int, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).mean(0)
