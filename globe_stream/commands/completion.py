"""Whether a run still has something to do."""

from globe_stream.config import TrainConfig
from globe_stream.errors import option
from globe_stream.store.run import Run
from globe_stream.training.schedule import Schedule, ScheduleState


def is_complete(run: Run, training: TrainConfig | None) -> bool:
    """Whether every unit is seeded and, with `training`, trained as long as that asks for."""
    return all(
        run.state(group["key"]) is not None
        and (training is None or _is_trained(run, group["key"], group["bases"], training))
        for group in run.header["units"]
    )


def why_complete(run: Run, training: TrainConfig) -> str:
    """Why `training` leaves nothing to do on a run that is done."""
    done = min((run.state(group["key"]) or {})["epoch"] for group in run.header["units"])
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


def _is_trained(run: Run, key: str, bases: int, training: TrainConfig) -> bool:
    record = run.state(f"{key}:next")
    if record is None:
        return False
    now = ScheduleState(**record)
    return now.epoch >= training.epochs or Schedule(training, bases, 1.0).stopped(now)
