"""What is known of a synthetic checkpoint without its data: its index, and how it was made."""

from pathlib import Path

from globe_stream.checkpoint.index import ExpertIndex, build_index
from globe_stream.checkpoint.json_files import read_json
from globe_stream.config import SyntheticModel, differences
from globe_stream.io.safetensors import Header
from globe_stream.io.safetensors_writer import plan_file
from globe_stream.synthetic.checkpoints import config_of, plan_shards


def planned_index(folder: Path, model: SyntheticModel) -> ExpertIndex:
    """The index that `model` would have, written to `folder`; nothing is written or read."""
    path = folder / "planned.safetensors"
    (tensors,) = plan_shards(model, 2**63)
    planned = plan_file(path, tensors)
    header = Header(path, planned.size, "", {}, planned.entries)
    return build_index(
        str(folder),
        revision=None,
        root=folder,
        config=config_of(model),
        headers=[header],
        weight_map=None,
        include_mtp=False,
    )


def made_otherwise(folder: Path, model: SyntheticModel) -> list[str] | None:
    """How the checkpoint in `folder` differs from `model`; None when it is not synthetic."""
    made = read_json(folder / "config.json").get("synthetic")
    return differences(made, model.model_dump()) if isinstance(made, dict) else None
