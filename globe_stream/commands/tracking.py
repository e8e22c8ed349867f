"""The trackers of a run: which were asked for, what they record of it, its pictures."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import JsonValue

from globe_stream import __version__
from globe_stream.config import RuntimeConfig
from globe_stream.config.options import Options
from globe_stream.engine.device import Machine
from globe_stream.engine.metrics import METRICS_FILE, MetricRow, read_metrics
from globe_stream.engine.records import TRAINING, TrainingOptions
from globe_stream.engine.status import fingerprint
from globe_stream.engine.tensorboard_tracker import FOLDER as TENSORBOARD_FOLDER
from globe_stream.engine.tensorboard_tracker import TensorBoardTracker
from globe_stream.engine.trackers import Tracker
from globe_stream.engine.wandb_tracker import TRACKER_ID, WandbTracker
from globe_stream.factorization.records import GroupRecord, run_header
from globe_stream.io.records import Json
from globe_stream.store.run import Run


def open_trackers(run: Run, runtime: RuntimeConfig, config: Json) -> list[Tracker]:
    """The trackers that `runtime` asks for; InputError when a library is missing.

    One that is new to the run is told the metrics so far.
    """
    rows = read_metrics(run.path / METRICS_FILE)
    trackers: list[Tracker] = []
    with ExitStack() as opened:
        if runtime.wandb_project is not None:
            new = not (run.path / TRACKER_ID).exists()
            tracker = WandbTracker(
                run.path,
                runtime.wandb_project,
                config,
                group=runtime.wandb_group,
                first_step=0 if new else len(rows),
            )
            opened.callback(tracker.close)
            trackers.append(_told(tracker, rows if new else []))
        if runtime.tensorboard:
            new = not (run.path / TENSORBOARD_FOLDER).exists()
            trackers.append(_told(TensorBoardTracker(run.path, config), rows if new else []))
        opened.pop_all()
    return trackers


def _told(tracker: Tracker, rows: Sequence[MetricRow]) -> Tracker:
    """`tracker`, after it has taken `rows`."""
    for row in rows:
        tracker.write(row)
    return tracker


def tracker_config(
    run: Run, machine: Machine, runtime: RuntimeConfig, options: Mapping[str, Options]
) -> Json:
    """Everything that decides `run`: model, options by section, sizes by family, the machine.

    `options` are those of this command in full; of other sections, those that the run recorded.
    The keys of an ablation stand in front.
    """
    header = run_header(run)
    training = run.state(TRAINING, TrainingOptions)
    recorded: dict[str, Json] = {
        "selection": header.config.selection,
        "seed": header.config.seed,
        "train": {} if training is None else training.options,
        "runtime": runtime.model_dump(mode="json"),
    }
    sections: dict[str, Json] = {
        name: {**values, **(options[name].model_dump(mode="json") if name in options else {})}
        for name, values in recorded.items()
    }
    seed, train = sections["seed"], sections["train"]
    return {
        "seeding_method": seed["method"],
        "m": {group.key: group.bases for group in header.groups},
        "r": {group.key: group.rank for group in header.groups},
        "target_support": _number(train.get("target_support")),
        "lambda_b": train.get("lambda_b"),
        "lambda_a": train.get("lambda_a", seed["lambda_a"]),
        **sections,
        "families": _sizes(header.groups),
        "model": header.model,
        "model_type": header.model_type,
        "revision": header.revision,
        "fingerprint": fingerprint(run, header),
        "machine": machine.to_json(),
        "version": __version__,
    }


def pictures(path: Path) -> dict[str, bytes]:
    """The pictures of the report of the run at `path`, PNG files by title.

    Plotting libraries are loaded here, after all measured work: few runs have a tracker.
    """
    from globe_stream.report.data import gather
    from globe_stream.report.page import sections

    return {
        image.title: image.png for section in sections(gather(path)) for image in section.images
    }


def _number(value: JsonValue) -> int | None:
    """A whole number written as text; None for anything else, such as "none"."""
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _sizes(groups: Sequence[GroupRecord]) -> Json:
    """N, p and d, and m and r of a bank, by family."""
    sizes: Json = {}
    for family in dict.fromkeys(group.family for group in groups):
        own = [group for group in groups if group.family == family]
        first = own[0]
        sizes[family] = {
            "N": sum(group.experts for group in own),
            "p": first.p,
            "d": first.d,
            "m": first.bases,
            "r": first.rank,
            "banks": len(own),
        }
    return sizes
