"""Whether a run still has something to do."""

from globe_stream.config import TrainConfig
from globe_stream.store.run import Run
from globe_stream.training.schedule import Schedule, Trajectory


def is_done(run: Run, training: TrainConfig | None) -> bool:
    """Whether every unit is seeded and, with `training`, trained as long as that asks for."""
    return all(
        run.state(unit["key"]) is not None
        and (training is None or _is_trained(run, unit["key"], unit["bases"], training))
        for unit in run.header["units"]
    )


def why_done(run: Run, training: TrainConfig) -> str:
    """Why `training` leaves nothing to do on a run that is done."""
    done = min((run.state(unit["key"]) or {})["epoch"] for unit in run.header["units"])
    if done < training.epochs:
        return (
            f"{run.path}: nothing is left to do: training stood still and stopped after {done} "
            "epochs. A larger --patience goes on"
        )
    return (
        f"{run.path}: nothing is left to do: --epochs {training.epochs} counts from the start, "
        f"{done} are done. Ask for more to go on"
    )


def _is_trained(run: Run, key: str, bases: int, training: TrainConfig) -> bool:
    record = run.state(f"{key}:next")
    if record is None:
        return False
    now = Trajectory(**record)
    return now.epoch >= training.epochs or Schedule(training, bases, 1.0).stopped(now)
