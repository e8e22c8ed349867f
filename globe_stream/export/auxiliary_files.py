"""The small files beside the shards that make a folder of tensors a model: tokenizer etc."""

from pathlib import Path

import huggingface_hub

from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.checkpoint.json_files import INDEX_NAME
from globe_stream.export.staging import ExportWork

_WEIGHTS = frozenset(
    (
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".gguf",
        ".ggml",
        ".onnx",
        ".h5",
        ".msgpack",
        ".npz",
    )
)
_OURS = frozenset(("config.json", "README.md", "globe_export.json", INDEX_NAME))


def companions(index: ExpertIndex) -> list[Path]:
    """Files of the source folder to copy as they are: no weights, nothing hidden, no folders."""
    return sorted(path for path in index.root.iterdir() if _is_companion(path))


def fetch_companions(index: ExpertIndex) -> None:
    """Make sure that those of a hub model are on this machine, at the model's revision."""
    if index.revision is not None:
        huggingface_hub.snapshot_download(
            index.model,
            revision=index.revision,
            ignore_patterns=[*(f"*{suffix}" for suffix in sorted(_WEIGHTS)), "*/*"],
        )


def total_bytes(index: ExpertIndex) -> int:
    """Bytes of all of them."""
    return sum(path.stat().st_size for path in companions(index))


def copy_companions(work: ExportWork, index: ExpertIndex) -> None:
    """Copy all of them into the export."""
    for path in companions(index):
        work.copy(path)


def _is_companion(path: Path) -> bool:
    if path.name.startswith(".") or path.name in _OURS or path.suffix in _WEIGHTS:
        return False
    return path.is_file() and not path.name.endswith(".index.json")
