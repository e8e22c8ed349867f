"""Seeding and training run on a checkpoint of every kind of layout, and mean what they say."""

import pytest
import torch
from sample_layouts import KINDS, write_layout
from support import slow

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.factorization.records import seeded_state
from globe_stream.store import arrays, codes
from globe_stream.store.run import Run

pytestmark = pytest.mark.usefixtures("quick")
QUIET = RuntimeConfig(device="cpu", memory="4GiB")


QUICK = ("mxfp4",)


@pytest.mark.parametrize("kind", [k if k in QUICK else slow(k) for k in KINDS])
def test_trains_and_the_error_is_that_of_the_experts_read(kind, tmp_path):
    model, run = str(write_layout(tmp_path / "model", kind)), tmp_path / "run"
    seeding = SeedConfig(bases=4, rank_ratio=0.5, kmeans_iterations=5)
    seeded = seed(model, run, SelectionConfig(), seeding, QUIET, silent=True)
    training = TrainConfig(epochs=4, warmup_epochs=1, target_support="none", activation="none")
    trained = train(run, training, QUIET, silent=True)
    for family in ("up", "gate"):
        before = seeded.families[family].relative_frobenius_error
        after = trained.families[family].relative_frobenius_error
        assert after < before
        assert after == pytest.approx(measured(model, run, family), rel=1e-4)


def measured(model: str, run: object, family: str) -> float:
    """relF of the saved state, in float64, from the experts as the index reads them one by one."""
    with Run(run, writable=False) as stored:
        state = seeded_state(stored, family)
        bank = torch.from_numpy(arrays.read(stored.array(f"{family}/bank"))).double()
        dense = codes.load(stored, family, len(bank)).double()
    lost = whole = 0.0
    for expert, code in zip(open_index(model).experts[family], dense, strict=True):
        weights = read_expert(expert).double()
        mixture = torch.tensordot(code, bank, 1)
        centred = weights - state.mean
        adapter = torch.linalg.lstsq(mixture.T, centred.T).solution.T
        lost += float((adapter @ mixture - centred).square().sum())
        whole += float(weights.square().sum())
    return (lost / whole) ** 0.5
