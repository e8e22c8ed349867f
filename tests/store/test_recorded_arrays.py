"""Which arrays a run must have, by its ledger alone; the rest is tested on whole runs."""

import random
from pathlib import Path

import pytest
import torch

from globe_stream.io.records import Record
from globe_stream.store.rows import recorded_arrays
from globe_stream.store.run import STORE, Run

NAMES = ("up/bank", "up/next/bank", "up/next/codes/values", "up/codes/values", "gate/bank")
MOVES = (("up/next/bank", "up/bank"), ("up/next/codes", "up/codes"), ("gate", "up/seed"))


@pytest.mark.slow
def test_the_ledger_says_what_there_is(tmp_path: Path) -> None:
    """After every commit of a random history, the recorded names are those in the store."""
    choose = random.Random(0)
    with Run.create(tmp_path / "run", Record()) as run:
        for _ in range(60):
            put = choose.sample(NAMES, choose.randint(0, 3))
            run.commit(
                {},
                {name: torch.zeros(1) for name in put},
                move=choose.sample(MOVES, choose.randint(0, 2)),
                drop=choose.sample(("gate", "up/seed", "up/bank"), choose.randint(0, 1)),
            )
            store = run.path / STORE
            there = {
                file.parent.relative_to(store).as_posix()
                for file in store.rglob("zarr.json")
                if '"array"' in file.read_text()
            }
            assert recorded_arrays(run.commits) == there
