"""What the cache of composed matrices keeps."""

import torch

from globe_stream.inference.cache import ComposedCache


def _ask(cache: ComposedCache, name: str, version: int = 0) -> bool:
    """Request a matrix of 40 bytes; whether it was kept already."""
    key = (name, 0, 0)
    if cache.find(key, version) is not None:
        return True
    cache.keep(key, version, torch.zeros(10))
    return False


def test_the_more_requested_stay() -> None:
    cache = ComposedCache(80)
    assert [_ask(cache, name) for name in "abab"] == [False, False, True, True]
    assert not _ask(cache, "c")
    assert ("c", 0, 0) not in cache
    assert not _ask(cache, "c")
    assert not _ask(cache, "c")
    assert ("c", 0, 0) in cache
    assert cache.bytes == 80
    assert (cache.hits, cache.misses) == (2, 5)


def test_going_round_more_than_fits_still_hits() -> None:
    cache = ComposedCache(80)
    rounds = [[_ask(cache, name) for name in "abcd"] for _ in range(5)]
    assert all(sum(one) == 2 for one in rounds[1:])


def test_another_version_is_made_anew() -> None:
    cache = ComposedCache(80)
    assert not _ask(cache, "a", 0)
    assert not _ask(cache, "a", 1)
    assert _ask(cache, "a", 1)
    assert cache.bytes == 40


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = ComposedCache(39)
    _ask(cache, "a")
    assert len(cache) == 0
    assert cache.bytes == 0
