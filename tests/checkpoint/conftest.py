"""Counting what is asked of the operating system."""

import os
from collections.abc import Callable

import pytest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Call it for the number of positioned reads since the last call."""
    real, count = os.preadv, 0

    def counting(*arguments: object) -> int:
        nonlocal count
        count += 1
        return real(*arguments)  # type: ignore[arg-type]

    def since() -> int:
        nonlocal count
        seen, count = count, 0
        return seen

    monkeypatch.setattr(os, "preadv", counting)
    return since
