"""Options of the course of a run, on any stage."""

from typing import Literal

from pydantic import Field

from globe_stream.config.options import RUNTIME, Options
from globe_stream.errors import InputError, option
from globe_stream.formatting import parse_size

OF_RUNS = ("force_download", "wandb_project", "wandb_group", "tensorboard")
"""Fields that only commands that work on a run have: seed, train, sweep."""

NOT_OF_THE_CPU = ("device", "device_memory", "precision", "checkpoint_every", *OF_RUNS)
"""Fields that commands lack which compute on the CPU and keep no run: the budget is left."""


class RuntimeConfig(Options):
    """Memory, device, checkpoints inside a pass, tracking."""

    memory: str | None = Field(
        None,
        description="Peak resident memory of the whole process, of each under torchrun, such as "
        "6GiB; 6G means the same (default: 60 % of the machine's memory, shared by all on it).",
        json_schema_extra={**RUNTIME, "metavar": "SIZE"},
    )
    device: Literal["auto", "cpu", "mps", "cuda"] = Field(
        "auto", description="Where the arithmetic runs."
    )
    device_memory: str | None = Field(
        None,
        description="Memory that cuda may take of a GPU, such as 10GiB: a second budget, which "
        "stages are priced to fit as well (default: 90 % of what the GPU has).",
        json_schema_extra={**RUNTIME, "metavar": "SIZE"},
    )
    precision: Literal["float32", "tf32", "bf16"] | None = Field(
        None,
        description="Of products that may be coarse: gradients and the warm-up's rotations. Gram "
        "matrices, adapters and measured errors are always float32. tf32 needs cuda (default: "
        "float32, or what the run began with).",
        json_schema_extra=RUNTIME,
    )
    checkpoint_every: float = Field(
        10.0,
        ge=0,
        description="Minutes between checkpoints inside a pass.",
        json_schema_extra={**RUNTIME, "metavar": "MINUTES"},
    )
    force_download: bool = Field(
        False,
        description="Download the shards of a hub model even where the cache has them, such as "
        "after a disk fault.",
        json_schema_extra=RUNTIME,
    )
    wandb_project: str | None = Field(
        None,
        description="Also log to this Weights & Biases project.",
        json_schema_extra={**RUNTIME, "metavar": "NAME"},
    )
    wandb_group: str | None = Field(
        None,
        description="Group of the Weights & Biases run, such as a sweep's name.",
        json_schema_extra={**RUNTIME, "metavar": "NAME"},
    )
    tensorboard: bool = Field(
        False,
        description="Also write TensorBoard event files into the run.",
        json_schema_extra=RUNTIME,
    )

    def check(self) -> None:
        for name in ("memory", "device_memory"):
            size = getattr(self, name)
            if size is not None:
                try:
                    parse_size(size)
                except InputError as error:
                    raise error.at(option(name)) from error
