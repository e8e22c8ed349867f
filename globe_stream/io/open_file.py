"""A file that stays open to be read in places."""

import os
from pathlib import Path

from globe_stream.io.closing import Closing
from globe_stream.io.files import read_exactly


class OpenFile(Closing):
    """The file `path`, opened to be read; may be closed more than once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start`; see `files.read_exactly`."""
        read_exactly(self._descriptor, start, view, self._path)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
