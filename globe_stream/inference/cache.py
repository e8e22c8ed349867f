"""Composed matrices kept within a budget of bytes, the most requested ones first."""

from collections import Counter
from collections.abc import Hashable

from torch import Tensor

Key = tuple[str, int, int]
"""Family, layer and expert."""


class ComposedCache:
    """Composed matrices by key, at most `budget` bytes of them.

    One that was requested more often replaces those requested least; on a tie what is kept stays.
    A forward pass visits all layers in turn, so keeping the most recent instead would drop every
    matrix just before it is wanted again. `requests` counts what was asked for, by key; `hits` and
    `misses` are their sums.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.requests: Counter[Key] = Counter()
        self._kept: dict[Key, tuple[Hashable, Tensor]] = {}

    def find(self, key: Key, version: Hashable) -> Tensor | None:
        """The matrix kept under `key`, if it was made of parameters of this `version`."""
        self.requests[key] += 1
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version:
            self.hits += 1
            return kept[1]
        if kept is not None:
            self.drop(key)
        self.misses += 1
        return None

    def keep(self, key: Key, version: Hashable, made: Tensor) -> None:
        """Keep a copy of `made` (rows, d), unless what it would displace is requested as often."""
        size = made.numel() * made.itemsize
        if key in self._kept:
            self.drop(key)
        if size > self.budget or not self._make_room(key, size):
            return
        self._kept[key] = (version, made.clone())
        self.bytes += size

    def drop(self, key: Key) -> None:
        """Forget one matrix."""
        _, dropped = self._kept.pop(key)
        self.bytes -= dropped.numel() * dropped.itemsize

    def clear(self) -> None:
        """Forget every matrix; the counts stay."""
        self._kept.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def _make_room(self, key: Key, size: int) -> bool:
        """Drop matrices requested less often than `key` until `size` bytes fit; False if none."""
        leaving: list[Key] = []
        freed = self.budget - self.bytes
        if freed < size:
            for other in sorted(self._kept, key=self.requests.__getitem__):
                if self.requests[other] >= self.requests[key]:
                    return False
                leaving.append(other)
                freed += self._kept[other][1].numel() * self._kept[other][1].itemsize
                if freed >= size:
                    break
        for other in leaving:
            self.drop(other)
        return freed >= size
