"""What identifies the content of a file in the records that are kept of it."""

from dataclasses import dataclass

from globe_stream.io.records import Record


@dataclass(frozen=True)
class FileDigest(Record):
    """Size and SHA-256 of a file's content."""

    bytes: int
    sha256: str
