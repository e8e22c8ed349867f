"""Reading a `.wandb` file: the log of an offline Weights & Biases run.

Format: a header of 7 bytes, then blocks of 32 KiB as in LevelDB's log. A record is cut into
fragments that fit a block, each with 4 bytes of checksum, 2 of length and 1 of type (1 whole,
2 first, 3 middle, 4 last); what a block has left below 7 bytes is padding.
Source: https://github.com/google/leveldb/blob/main/doc/log_format.md.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FRAGMENT = 32768, 7, 7
WHOLE, LAST = 1, 4


def payloads(path: Path) -> Iterator[bytes]:
    """The records of the file as they were serialised."""
    data, place, parts = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B", f"{path}: not a .wandb file"
    while place + FRAGMENT <= len(data):
        left = BLOCK - place % BLOCK
        if left < FRAGMENT:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            return
        place += FRAGMENT
        parts += data[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def records(path: Path) -> list[Any]:
    """The records of the file as wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        found.append(record)
    return found
