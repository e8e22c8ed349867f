"""The JSON files of a checkpoint: config.json, and the index that names its shards."""

import json
from pathlib import Path, PurePosixPath

from globe_stream.errors import InputError
from globe_stream.io.records import JsonObject
from globe_stream.io.system_errors import explained

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def parse_weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard name, from the index file `path`.

    Raises InputError for a shard that lies outside the folder of the index.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: has no weight_map. Download it again.")
    return {name: _shard_name(path, shard) for name, shard in weight_map.items()}


def _shard_name(index: Path, shard: object) -> str:
    """The shard's path below the folder of `index`, with forward slashes."""
    place = PurePosixPath(shard) if isinstance(shard, str) else PurePosixPath("..")
    outside = place.is_absolute() or not place.name or {"..", "\0"} & set(place.parts)
    if outside or "\0" in place.as_posix() or "\\" in place.as_posix():
        raise InputError(
            f"{index}: names the shard {shard!r}, which does not lie in the folder. "
            "Download the checkpoint again."
        )
    return place.as_posix()


def shard_names(root: Path, weight_map: dict[str, str] | None) -> list[str]:
    """Names of the shards of the local folder `root`, sorted."""
    if weight_map is not None:
        return sorted(set(weight_map.values()))
    names = sorted(path.name for path in root.glob("*.safetensors"))
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    if not names:
        raise InputError(f"{root}: holds no safetensors files. Give the folder of a checkpoint.")
    if len(names) > 1:
        raise InputError(
            f"{root}: holds {len(names)} safetensors files and no {INDEX_NAME} that says which "
            "belong together. Download the index file."
        )
    return names


def read_json(path: Path) -> JsonObject:
    """The JSON object in the file `path`; InputError if it is none."""
    try:
        with explained(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON file ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object. Download it again.")
    return value
