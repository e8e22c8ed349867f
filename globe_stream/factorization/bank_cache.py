"""The banks that are in memory while an export visits unit after unit."""

from types import TracebackType

from globe_stream.factorization.trained_run import FittedGroup
from globe_stream.store.bank import StoredBank


class BankCache:
    """Hands out banks, keeping the `resident` last used ones; 0 keeps them on disk."""

    def __init__(self, resident: int) -> None:
        self._resident = resident
        self._open: dict[str, StoredBank] = {}

    def bank(self, group: FittedGroup) -> StoredBank:
        """The bank of `unit`."""
        key = group.group.key
        bank = self._open.pop(key, None)
        if bank is None:
            while len(self._open) >= max(1, self._resident):
                self._open.pop(next(iter(self._open))).close()
            bank = StoredBank(group.bank, resident=self._resident > 0)
        self._open[key] = bank
        return bank

    def close(self) -> None:
        """Close every bank."""
        for bank in self._open.values():
            bank.close()
        self._open.clear()

    def __enter__(self) -> "BankCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
