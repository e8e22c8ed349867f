"""Composed matrices kept within a budget of bytes, the most requested ones first."""

import heapq
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
        self._ranked: list[tuple[int, Key]] = []  # a heap; see _least_requested

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
        size = made.nbytes
        if key in self._kept:
            self.drop(key)
        if size > self.budget or not self._make_room(key, size):
            return
        self._kept[key] = (version, made.clone())
        heapq.heappush(self._ranked, (self.requests[key], key))
        self.bytes += size

    def drop(self, key: Key) -> None:
        """Forget one matrix."""
        self._take_out(key)
        self._ranked = [ranked for ranked in self._ranked if ranked[1] != key]
        heapq.heapify(self._ranked)

    def clear(self) -> None:
        """Forget every matrix; the counts stay."""
        self._kept.clear()
        self._ranked.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def _make_room(self, key: Key, size: int) -> bool:
        """Drop matrices requested less often than `key` until `size` bytes fit; False if none."""
        leaving: list[Key] = []
        freed = self.budget - self.bytes
        while freed < size:
            other = self._least_requested()
            if other is None or self.requests[other] >= self.requests[key]:
                break
            leaving.append(heapq.heappop(self._ranked)[1])
            freed += self._kept[other][1].nbytes
        if freed < size:
            for other in leaving:
                heapq.heappush(self._ranked, (self.requests[other], other))
            return False
        for other in leaving:
            self._take_out(other)
        return True

    def _take_out(self, key: Key) -> None:
        _, dropped = self._kept.pop(key)
        self.bytes -= dropped.nbytes

    def _least_requested(self) -> Key | None:
        """The first of `_ranked`, whose counts are brought up to date as they come up."""
        while self._ranked:
            count, key = self._ranked[0]
            if count != self.requests[key]:
                heapq.heapreplace(self._ranked, (self.requests[key], key))
            else:
                return key
        return None
