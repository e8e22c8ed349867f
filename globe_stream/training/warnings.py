"""Settings of training that do not do what they seem to, and targets that were not reached."""

from globe_stream.config import TrainConfig
from globe_stream.errors import option
from globe_stream.training.schedule import ScheduleState

MISSED = 0.25
"""A median support farther than this share from the target (and than one atom) missed it."""


def training_warnings(config: TrainConfig, bases: int) -> list[str]:
    """One line for each setting of `config` that means something else with `bases` atoms."""
    target, cap = config.support_target(), config.support_cap
    lines = []
    if target is not None and target > bases:
        lines.append(
            f"{option('target_support')} {target} is above the {bases} atoms of a bank: "
            "codes are left unconstrained"
        )
    if target is not None and cap is not None and cap < target:
        lines.append(
            f"{option('support_cap')} {cap} is below {option('target_support')} {target}: "
            f"codes use {cap} atoms at most"
        )
    if config.warmup_epochs > config.epochs:
        lines.append(
            f"{option('warmup_epochs')} {config.warmup_epochs} is above {option('epochs')} "
            f"{config.epochs}: all epochs are warm-up, with orthonormal adapters and no activation"
        )
    return lines


def missed_targets(
    config: TrainConfig, state: ScheduleState, bases: int, median: float
) -> list[str]:
    """One line for each target that training ended without, with what was reached and why.

    Options are named as fields, for the run keeps these lines. `median` is the median support of
    the saved codes, over a bank of `bases` atoms.
    """
    target = config.support_target()
    if target is None or target >= bases or abs(median - target) <= max(1.0, MISSED * target):
        return []
    return [
        f"target_support {target} was not reached: the median support is {median:.0f} "
        f"after {state.epoch} epochs. {_why_missed(config, state, median > target)}"
    ]


def _why_missed(config: TrainConfig, state: ScheduleState, above: bool) -> str:
    if state.rejected:
        return (
            f"{state.rejected} of them raised relF by more than guard {config.guard} "
            f"and were taken back: ask for a larger support, or allow more with guard"
        )
    limit = config.temperature_min if above else config.temperature_max
    if state.temperature == limit:
        name = "temperature_min" if above else "temperature_max"
        return f"The temperature is at its limit, {name} {limit:g}"
    return "It had not settled: more epochs may reach it"
