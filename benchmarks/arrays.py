"""What it takes to write and to read a small array of a run, and the same by the zarr library.

    python benchmarks/arrays.py [--count 200]

Prints milliseconds of processor time for an array of 12 x 20 float32.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zarr
from zarr.codecs import Crc32cCodec

from globe_stream.store import arrays

VALUES = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))


def milliseconds(work: Callable[[int], object], count: int) -> float:
    """Processor time of one call, this process's threads included."""
    work(count)
    begin = time.process_time()
    for number in range(count):
        work(number)
    return 1000 * (time.process_time() - begin) / count


def by_the_library(path: Path) -> None:
    """As a run has it: one chunk, its checksum, and one attribute."""
    values = VALUES.numpy()
    array = zarr.create_array(
        str(path),
        shape=values.shape,
        chunks=values.shape,
        dtype="float32",
        filters=None,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    array.update_attributes({"check": 16 * "0"})
    array[...] = values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        own, other = Path(name) / "own", Path(name) / "zarr"
        for folder in (own, other):
            folder.mkdir()
        steps: dict[str, Callable[[int], object]] = {
            "write": lambda k: arrays.write(own / str(k), VALUES),
            "read": lambda k: arrays.read(own / str(k)),
            "write with zarr": lambda k: by_the_library(other / str(k)),
            "read with zarr": lambda k: zarr.open_array(str(other / str(k)), mode="r")[...],
        }
        for title, work in steps.items():
            print(f"{title}: {milliseconds(work, count):.2f} ms")


if __name__ == "__main__":
    main()
