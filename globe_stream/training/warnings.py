"""Settings of training that are allowed, but do not do what they seem to."""

from globe_stream.config import TrainConfig
from globe_stream.errors import option


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
