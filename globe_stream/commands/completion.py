"""Whether a run still has something to do."""

from globe_stream.config import TrainConfig
from globe_stream.errors import option
from globe_stream.factorization.records import (
    GroupRecord,
    group_state,
    run_header,
    seeded_state,
)
from globe_stream.store.run import Run
from globe_stream.training.schedule import Schedule, ScheduleState


def is_complete(run: Run, training: TrainConfig | None) -> bool:
    """Whether every group is seeded and, with `training`, trained as long as that asks for."""
    return all(
        group_state(run, group.key) is not None
        and (training is None or _is_trained(run, group, training))
        for group in run_header(run).groups
    )


def why_complete(run: Run, training: TrainConfig) -> str:
    """Why `training` leaves nothing to do on a run that is done."""
    done = min(seeded_state(run, group.key).epoch for group in run_header(run).groups)
    if done < training.epochs:
        return (
            f"{run.path}: nothing is left to do: training stood still and stopped after {done} "
            f"epochs. A larger {option('patience')} goes on"
        )
    return (
        f"{run.path}: nothing is left to do: "
        f"{option('epochs')} {training.epochs} counts from the start, "
        f"{done} are done. Ask for more to go on"
    )


def _is_trained(run: Run, group: GroupRecord, training: TrainConfig) -> bool:
    now = run.state(f"{group.key}:next", ScheduleState)
    if now is None:
        return False
    return now.epoch >= training.epochs or Schedule(training, group.bases, 1.0).stopped(now)
