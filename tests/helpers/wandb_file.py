"""Reading a `.wandb` file: the log of an offline Weights & Biases run.

Format: a header of 7 bytes, then blocks of 32 KiB as in LevelDB's log. A record is cut into
fragments that fit a block, each with 4 bytes of checksum, 2 of length and 1 of type (1 whole,
2 first, 3 middle, 4 last); what a block has left below 7 bytes is padding.
Source: https://github.com/google/leveldb/blob/main/doc/log_format.md.

`python tests/helpers/wandb_file.py RUN` prints what the offline runs of a run directory hold.
"""

import json
import struct
import sys
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


def group(part: list[Any]) -> str:
    """The group that the records `part` of one offline run name."""
    (found,) = {r.run.run_group for r in part if r.WhichOneof("record_type") == "run"}
    return str(found)


def history(part: list[Any]) -> list[dict[str, Any]]:
    """The logged rows of one offline run: values by name, media as {field: value}."""
    rows: list[dict[str, Any]] = []
    for record in part:
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            name, *fields = [item.key] if item.key else list(item.nested_key)
            value = json.loads(item.value_json)
            if fields:
                row.setdefault(name, {})[fields[0]] = value
            else:
                row[name] = value
        rows.append(row)
    return rows


def configuration(part: list[Any]) -> dict[str, Any]:
    """What the run was configured with."""
    values: dict[str, Any] = {}
    for record in part:
        for update in (record.run.config.update, record.config.update):
            values |= {item.key: json.loads(item.value_json) for item in update}
    return values


def contents(run: Path) -> str:
    """What the offline runs of the run directory `run` hold, as lines of text."""
    parts = [records(path) for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]
    config: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for part in parts:
        config |= configuration(part)
        rows += history(part)
    kinds: dict[str, set[str]] = {"number": set(), "histogram": set(), "image-file": set()}
    for row in rows:
        for name, value in row.items():
            if not name.startswith("_"):
                kinds[value["_type"] if isinstance(value, dict) else "number"].add(name)
    prefixes = sorted({"/".join(name.split("/")[:1]) for name in kinds["number"]})
    return "\n".join(
        (
            f"offline runs: {len(parts)}, group {group(parts[0])!r}, rows: {len(rows)}",
            f"configuration: {', '.join(config)}",
            f"series of numbers: {len(kinds['number'])} ({', '.join(prefixes)})",
            f"histograms: {', '.join(sorted(kinds['histogram']))}",
            f"pictures: {', '.join(sorted(kinds['image-file']))}",
        )
    )


if __name__ == "__main__":
    print(contents(Path(sys.argv[1])))
