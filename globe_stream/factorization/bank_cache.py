"""The banks that an export reads atoms from: those of the run, and those that it has written."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.io.closing import Closing
from globe_stream.io.dtypes import TORCH_DTYPES, bytes_of
from globe_stream.io.open_file import OpenFile
from globe_stream.io.safetensors import TensorEntry
from globe_stream.store.bank import StoredBank


class Bank(Protocol):
    """Atoms (m, r, d) that are read one by one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """m, r and d."""

    def atom(self, number: int) -> Tensor:
        """Atom `number` (r, d), of any floating dtype; the next call may overwrite it."""

    def close(self) -> None:
        """Close files and give memory back."""


Opener = Callable[[FittedGroup, bool], Bank]
"""Opens the bank of a group, in memory or not."""


def stored_bank(group: FittedGroup, resident: bool) -> Bank:
    """The bank of a group as the run keeps it."""
    return StoredBank(group.bank, resident=resident)


class BankCache(Closing):
    """Hands out banks, keeping the `resident` last used ones; 0 keeps them on disk."""

    def __init__(self, resident: int, opener: Opener = stored_bank) -> None:
        self._resident = resident
        self._opener = opener
        self._open: dict[str, Bank] = {}

    def bank(self, group: FittedGroup) -> Bank:
        """The bank of `group`."""
        key = group.group.key
        bank = self._open.pop(key, None)
        if bank is None:
            while len(self._open) >= max(1, self._resident):
                self._open.pop(next(iter(self._open))).close()
            bank = self._opener(group, self._resident > 0)
        self._open[key] = bank
        return bank

    def close(self) -> None:
        """Close every bank."""
        for bank in self._open.values():
            bank.close()
        self._open.clear()


class WrittenBank(Closing):
    """The bank (m, r, d) of the tensor `entry` as it was written to the file `path`, by atoms.

    Memory: one atom.
    """

    def __init__(self, path: Path, entry: TensorEntry) -> None:
        m, r, d = entry.shape
        self.shape = (m, r, d)
        self._start = entry.start
        self._buffer = torch.empty(r, d, dtype=TORCH_DTYPES[entry.dtype])
        self._file = OpenFile(path)

    def atom(self, number: int) -> Tensor:
        """Atom `number` (r, d) as stored, in a buffer that the next call overwrites."""
        view = bytes_of(self._buffer)
        self._file.read_into(self._start + number * len(view), view)
        return self._buffer

    def close(self) -> None:
        """Close the file."""
        self._file.close()
