"""What identifies a checkpoint."""

from dataclasses import dataclass

from globe_stream.io.records import Record


@dataclass(frozen=True)
class ShardFingerprint(Record):
    """One shard: its size in bytes and the sha256 of its header."""

    size: int
    header_sha256: str


@dataclass(frozen=True)
class CheckpointFingerprint(Record):
    """The revision of a hub model, if it is one, and every shard by file name."""

    revision: str | None
    files: dict[str, ShardFingerprint]
