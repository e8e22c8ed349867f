"""`config.toml`, the record of a run's settings for people and for recipes."""

from globe_stream.config import TrainConfig, to_toml
from globe_stream.factorization.records import run_header
from globe_stream.io import files
from globe_stream.io.records import JsonObject
from globe_stream.store.run import Run


def write_config(run: Run, training: TrainConfig | None) -> None:
    """Write the settings that `run` was seeded with, and those of `training` if it has begun."""
    header = run_header(run)
    sections: dict[str, JsonObject] = {
        "model": {"model": header.model, **header.config.selection},
        "seed": header.config.seed,
        "runtime": {"device": header.config.device},
    }
    if training is not None:
        sections["train"] = training.model_dump()
    files.write_text(run.path / "config.toml", to_toml(sections))
